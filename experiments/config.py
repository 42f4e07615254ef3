"""Configs of the main job: every field, its meaning, and how they are stored and compared."""

import json
import runpy
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments import pruners

_FREE = (
    "data_dir",
    "stop_after",
    "devices",
    "sharding",
    "threads",
)  # a run may go on with others of these


def defaults() -> ConfigDict:
    """Every field of the main job; configs begin with these values."""
    config = ConfigDict()
    config.name = "digits"  # names the default workdir
    config.method = (
        "dce"  # dce | dense | scratch | subset | random; and the methods of experiments.prune
    )
    config.network = "vgg-digits"
    config.width = 1.0  # multiplies the network's published widths
    config.dtype = "float32"  # compute type: float32 | bfloat16
    config.remat = False  # compute a block's activations again instead of keeping them
    config.dataset = "digits"  # a TFDS name, a .npz file, or a folder of class folders
    config.data_dir = config_dict.placeholder(str)  # TFDS data directory
    config.image_size = config_dict.placeholder(int)  # TFDS images of many sizes: cut to this side
    config.threads = config_dict.placeholder(int)  # that decode them; else: processors, up to 32
    config.validation = 0  # training images held out and evaluated instead of the test split
    config.examples = config_dict.placeholder(int)  # train on so many images only
    config.seed = 0
    config.keep = 0.5  # fraction of every group's channels that execute
    config.macs = config_dict.placeholder(float)  # or: share of dense MACs, uniform fraction
    config.widths = ""  # or: explicit "conv0=8,conv1=12"; groups left out stay whole
    config.whole = ""  # groups held at full width: "stem,stage0"
    config.allocation = "uniform"  # or global: learned while exploring, at the same cost
    config.target = "macs"  # global: the cost that stays the same: macs | params
    config.plans = 3  # global: how often the budget is learned, the last time at the commit
    config.scale = "mean"  # global: how layers compare: by their max | l2 | mean | none
    config.per_cost = False  # global: value a channel per MAC that it costs (fisher: without beta)
    config.floor = 0.1  # global: no group gets less than this share of its channels
    config.multiple_of = 1  # budgets are multiples of it; 0: of what this device wants
    config.min_channels = 1
    config.select_every = 10  # R: steps that one selection serves
    config.commit = 0.03  # share of the steps after which the selection is fixed; 1 = never
    config.grow = 1.0  # share of the final channels that executes until the commit; 1: all
    config.explore_keep = config_dict.placeholder(float)  # or: fraction of all that executes
    config.scoring = 0  # batches that score the network for a plan; 0: bandit's means, method's own
    config.sparsity = 1e-4  # slimming: L1 penalty on the norms' scales until the last channels go
    # Pruning methods; what is left out is the method's own (`experiments.pruners`).
    config.prune_until = 0.5  # share of the training MACs after which the last channels go
    config.prune_dense = 0.5  # share of that after which the first ones go
    config.rounds = config_dict.placeholder(int)  # how often channels go
    config.criterion = config_dict.placeholder(str)  # signal that says what a channel is worth
    config.prune_allocation = config_dict.placeholder(str)  # global | uniform
    config.penalty = config_dict.placeholder(float)  # on what a channel costs
    config.watch = config_dict.placeholder(int)  # steps before a round that average the criterion
    config.fold = config_dict.placeholder(bool)  # whether biases take removed channels' means
    config.latents = ""  # file of learned layer latents (compensated; dce with allocation=global)
    config.affine = False  # compensated: whether latents also scale a layer's saliencies
    config.search_evaluations = 400  # compensated: candidates of the search for latents
    config.search_population = 64  # of them that may become parents; a quarter of it competes
    config.search_examples = 256  # training images held out for it, in whole batches
    config.distill = 0.0  # share of the loss that compares with the dense network's outputs
    config.contest = 1.0  # share of the seats open at a selection, falling to 0; 1: always all
    config.lookup = "index"  # how slabs are gathered: index | one_hot, with the same bits
    config.quiet = False  # whether consumers start to read a newcomer from zero
    config.alpha = 0.1  # scale of the confidence radius; 1 is the paper's
    config.alpha_end = config_dict.placeholder(float)  # linear schedule to this at the commit
    config.discount = 1.0  # of the bandit's means; 1 is the plain mean
    config.signal = "norm_taylor"  # or any name of `python -m experiments.signals --list`
    config.rewards = "max"  # values over their group's max, or ranks in the group: max | rank
    config.final = "best"  # which channels the commit keeps: best | and as controls: random | worst
    config.init_scale = 1.0  # multiplies every initial kernel
    config.pretrained = ""  # workdir of a finished dense run to begin with; {seed}: this run's seed
    config.epochs = 20.0
    config.steps = config_dict.placeholder(int)  # overrides epochs
    config.batch_size = 32
    config.optimizer = "sgd"  # sgd | adamw | lion
    config.learning_rate = 0.05
    config.warmup = 0.05  # share of the whole
    config.rate_over = "steps"  # what the rate is a function of: steps, or training macs spent
    config.restart = False  # whether the rate starts anew at the commit
    config.weight_decay = 5e-4
    config.idle = "freeze"  # idle channels: freeze | forget moments | catch_up on decoupled decay
    config.crop = 0  # pixels of random shift
    config.flip = False
    config.block = 20  # steps between two log lines; rounded up to a multiple of select_every
    config.checkpoint_blocks = 10  # blocks between two checkpoints
    config.recalibration_examples = 1024
    config.scan = "auto"  # many steps per dispatch: auto (not on the CPU) | on | off
    config.devices = 1  # that share every batch; 0: all, of all processes
    config.sharding = "replicated"  # full-width parameters and moments: replicated | sharded
    config.deterministic = False  # on GPU: what XLA offers (xla_gpu_deterministic_ops)
    config.stop_after = config_dict.placeholder(int)  # stop, as Ctrl-C does, after this step
    return config


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as plain data for JSON."""
    return dict(sorted(config.to_dict().items()))


def portable(config: ConfigDict) -> dict[str, Any]:
    """A config as results store it: without the fields that only this machine or start knows."""
    return {field: value for field, value in plain(config).items() if field not in _FREE}


def command(config: ConfigDict) -> str:
    """The command that makes a run: its config file, if it is one of ours, and what differs."""
    program = "prune" if pruners.prunes(config) else "train"
    return command_of(config, f"python -m experiments.{program}", defaults())


def command_of(config: ConfigDict, program: str, base: ConfigDict) -> str:
    """The command of any program that takes configs.

    Args:
      config: of the run.
      program: how it is called.
      base: every field, where the config's file is none of ours.
    """
    path = Path(__file__).parent / "configs" / f"{config.name}.py"
    shipped = path.is_file() and path.stem != "__init__"
    base = runpy.run_path(str(path))["get_config"]() if shipped else base
    words = [program]
    if shipped:
        words.append(f"--config experiments/configs/{path.name}")
    if config.data_dir is not None:
        words.append("--config.data_dir DIR")
    before = portable(base)
    words += [
        f"--config.{field}={shlex.quote(str(value))}"
        for field, value in portable(config).items()
        if value != before[field]
    ]
    return " ".join(words)


def check_same(
    stored: dict[str, Any],
    config: ConfigDict,
    path: Path,
    *,
    remedy: str = "another --workdir",
    ignoring: Collection[str] = (),
) -> None:
    """Refuses to go on with what another config made.

    Args:
      stored: the config that made it, as plain data.
      config: the one that is asked for.
      path: what was made: a workdir, or a result file.
      remedy: what to choose instead.
      ignoring: fields that may differ.

    Raises:
      ValueError: the fields that differ, with both values.
    """
    given = plain(config)
    # An earlier version did not know every field.
    later = {field: value for field, value in plain(defaults()).items() if field in given}
    known = {**later, **stored}
    changed = [
        f"  {field}: {known.get(field)!r} there, {given.get(field)!r} now"
        for field in sorted(known.keys() | given.keys())
        if field not in (*_FREE, *ignoring) and known.get(field) != given.get(field)
    ]
    if changed:
        raise ValueError(
            f"{path} was made with another config:\n" + "\n".join(changed) + "\n"
            f"choose {remedy}, or the config that made it"
        )


def field_message(error: AttributeError) -> str:
    """What ml_collections says of an unknown field, with the nearest name, on one line."""
    # It adds the nearest name to Python's message, quoted twice.
    return str(error).replace("\\n", ". ").replace("\\'", "").replace("'", "").strip('" ')


def parse_widths(text: str) -> dict[str, int]:
    """``"conv0=8,conv1=12"`` as group -> width.

    Raises:
      ValueError: an entry that is not ``group=integer``.
    """
    found = {}
    for entry in text.split(","):
        group, _, width = entry.partition("=")
        if not width.strip().isdigit():
            raise ValueError(f"widths entry {entry!r} is not GROUP=INTEGER, as in conv0=8,conv1=12")
        found[group.strip()] = int(width)
    return found


def parse_groups(text: str) -> tuple[str, ...]:
    """``"stem, stage0"`` as names of groups."""
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def read(path: Path) -> dict[str, Any]:
    """A stored config.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise ValueError(f"it holds {type(stored).__name__}, not an object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): choose another --workdir") from error
    return stored
