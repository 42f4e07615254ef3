"""Configs of per-input execution: every field and its meaning."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments import config


def defaults() -> ConfigDict:
    """Every field of `experiments.runtime`; configs begin with these values."""
    settings = ConfigDict()
    settings.name = "runtime_digits"  # names the default workdir
    settings.system = "rnp"  # rnp | l | c | lc | fbs
    settings.backbone = "runs/digits-dce-seed0"  # workdir of a finished run: its compact model
    settings.data_dir = config_dict.placeholder(str)  # TFDS data directory
    settings.seed = 0
    settings.parts = config_dict.placeholder(int)  # widths per site; rnp 4, l 1, else up to 8
    settings.cheapest = config_dict.placeholder(float)  # end of the knob's span; or the system's
    settings.dearest = config_dict.placeholder(float)  # its other end
    settings.points = 7  # knobs at which the result is evaluated
    settings.epochs = 8.0
    settings.steps = config_dict.placeholder(int)  # overrides epochs
    settings.batch_size = 64
    settings.optimizer = "sgd"  # of the network: sgd | adamw | lion
    settings.learning_rate = 0.02
    settings.warmup = 0.05  # share of the whole
    settings.weight_decay = 5e-4
    settings.deciding_rate = config_dict.placeholder(float)  # AdamW; rnp 1e-2, else 1e-3
    settings.weight = 20.0  # l, c, lc: of the squared distance to the budget
    settings.sparsity = 1e-4  # fbs: of the mean saliency
    settings.random = 0.4  # rnp: share of the steps that first train under random decisions
    settings.turn = 50  # rnp: then steps in a turn; three of what decides, one of the network
    settings.gamma = 0.999  # rnp: discount
    settings.epsilon = 0.1  # rnp: share of random decisions at the end; 1 at the beginning
    settings.crop = 0  # pixels of random shift
    settings.flip = False
    settings.threads = config_dict.placeholder(int)  # that decode images
    settings.block = 50  # steps between two log lines
    settings.checkpoint_blocks = 10  # blocks between two checkpoints
    settings.stop_after = config_dict.placeholder(int)  # stop, as Ctrl-C does, after this step
    return settings


def check(settings: ConfigDict) -> None:
    """Refuses numbers that no run can have.

    Raises:
      ValueError: naming field, value and limit.
    """
    positive = ("points", "batch_size", "block", "checkpoint_blocks", "turn")
    for field in positive:
        if settings[field] < 1:
            raise ValueError(f"{field} is {settings[field]}: choose 1 or more")
    for field in ("random", "epsilon", "gamma", "warmup"):
        if not 0.0 <= settings[field] <= 1.0:
            raise ValueError(f"{field} is {settings[field]}: choose 0 to 1")
    for field in ("learning_rate", "deciding_rate", "epochs"):
        if settings[field] is not None and not settings[field] > 0.0:
            raise ValueError(f"{field} is {settings[field]}: choose more than 0")
    if (settings.cheapest is None) != (settings.dearest is None):
        raise ValueError("a span has two ends: set both cheapest and dearest, or neither")


def command(settings: ConfigDict) -> str:
    """The command that makes a run; its backbone by the name of its workdir."""
    shown = ConfigDict(settings.to_dict())
    shown.backbone = _portable(settings.backbone)
    return config.command_of(shown, "python -m experiments.runtime", defaults())


def portable(settings: ConfigDict) -> dict[str, Any]:
    """A config as results store it: without what only this machine knows."""
    return {**config.portable(settings), "backbone": _portable(settings.backbone)}


def _portable(backbone: str) -> str:
    return f"runs/{Path(backbone).absolute().name}"
