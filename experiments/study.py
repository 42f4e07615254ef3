"""Every signal of the algebra against an oracle: what removing each channel really costs.

The oracle is the change of the loss when one channel of a trained network is taken away, measured;
signals and oracle see the same training images, in inference mode. A ranking is worth what it
agrees with the oracle (Spearman), and what it lets go before test accuracy falls.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dce_jax import channels as maps
from dce_jax import saliency, signals
from dce_jax.parts import norm_parts
from dce_jax.pruning import oracle as oracles
from dce_jax.types import Evidence, Rewards
from experiments import removal, subject
from experiments.correlation import Agreement, Values, agreement, host
from experiments.subject import Subject

RANDOM = "random"
SIGNED, ABSOLUTE = "oracle", "oracle, absolute"
"""Orders by the loss change itself, and by its size."""

PUBLISHED = {
    "weights.x.l1.none": "L1 norm",
    "weights.x.l2.none": "L2 norm",
    "weights.x.l2.cardinality": "min weight",
    "activations.taylor.abs_sum.l2": "Taylor (Molchanov)",
    "activations.taylor.abs_sum.elements": "the same, before the l2 norm",
    "activations.taylor.sqr_sum.none": "Fisher (Theis)",
    "centred_units.taylor.abs_sum.l2": "mean replacement (Evci)",
    "units.taylor.abs_sum.l2": "removal (Evci); Taylor behind the ReLU",
    "units.taylor.abs_sum.elements": "Taylor behind the ReLU, before the l2 norm",
    "units.taylor.abs_sum.none": "Taylor behind the ReLU, summed over positions",
    "units.taylor.sqr_sum.none": "Fisher behind the ReLU",
    "centred.taylor.l1.none": "mean replacement (Evci's thesis)",
    "units.apoz": "APoZ",
    "units.mean": "mean activation",
    "units.std": "deviation of activation",
    "units.mutual_information": "mutual information",
    "activations.apoz": "APoZ in front of the ReLU",
    "activations.mean": "mean activation in front of the ReLU",
    "activations.std": "deviation in front of the ReLU",
    "activations.mutual_information": "mutual information in front of the ReLU",
    "weights.geometric_median": "geometric median",
    "norm_scale": "norm scale",
}
"""Signal -> the published criterion that ranks as it does (docs/signals.md), or one close to it."""


class Sizes(NamedTuple):
    """How much a study looks at.

    Attributes:
      examples: training images for oracle and signals.
      test_examples: test images for the removal curves.
      batch: images at a time.
      chunk: images whose kernels' derivatives are held at a time.
      best: how many signals of the algebra have a removal curve, beside the published ones.
      draws: random orders.
      look: share of the channels between two looks of a curve.
    """

    examples: int = 1000
    test_examples: int = 2000
    batch: int = 100
    chunk: int = 25
    best: int = 20
    draws: int = 3
    look: float = 0.01


Report = Callable[[str, int, int], None]
"""``(what is being done, how many are done, of how many)``."""


def oracle(asked: Subject, sizes: Sizes, report: Report) -> dict[str, np.ndarray]:
    """Loss change when each channel alone is cut out: group -> float64[C]."""
    return oracles.penalties(
        asked.scene,
        list(subject.batches(asked, "train", sizes.examples, sizes.batch)),
        report=partial(report, "oracle, channels"),
    )


def algebra(asked: Subject, sizes: Sizes, report: Report) -> dict[str, Values]:
    """All 396 formulas and the published ones outside them: name -> group -> float[C]."""
    outside = [name for name in PUBLISHED if name.count(".") == 3 and name not in signals.names()]
    formulas = [*signals.formulas(), *map(signals.parse, outside)]
    found = signals.averages(
        formulas,
        asked.scene,
        list(subject.batches(asked, "train", sizes.examples, sizes.batch)),
        chunk=sizes.chunk,
        report=partial(report, "signals, batches"),
    )
    return {str(formula): host(values) for formula, values in found.items()}


def others(asked: Subject, sizes: Sizes) -> dict[str, Values]:
    """Published signals outside the algebra, on all examples at once, and random draws."""
    parts = subject.batches(asked, "train", sizes.examples, sizes.batch)
    batch = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    wanted = [name for name in PUBLISHED if name.count(".") == 1]
    found = {name: _alone(asked, name, batch) for name in wanted}
    widths = maps.module_widths(asked.scene.module)
    declared = getattr(asked.scene.module, "reward_norms", None)
    if declared is not None:
        signal = saliency.norm_scale(declared(), norm_parts(asked.scene.channels, widths))
        found["norm_scale"] = host(signal.value(Evidence(asked.scene.params, {}, {})))
    for draw in range(sizes.draws):
        random = np.random.default_rng(draw)
        found[f"{RANDOM} {draw}"] = {g: random.random(width) for g, width in widths.items()}
    return found


def rows(measured: Values, found: Mapping[str, Values]) -> list[dict[str, Any]]:
    """One row per signal, the best first: how well it agrees with the oracle.

    Rows are ranked by their agreement with the absolute loss change across all layers; a signal
    that ranks nothing comes last.

    Args:
      measured: of `oracle`.
      found: of `algebra` and `others`.
    """
    size = {group: np.abs(each) for group, each in measured.items()}
    made = []
    for name, values in found.items():
        absolute, signed = agreement(values, size), agreement(values, measured)
        made.append(_row(name, absolute, signed))
    return sorted(made, key=lambda row: -_known(row["across"]))


def curves(
    asked: Subject, found: Mapping[str, Values], names: Iterable[str], sizes: Sizes, report: Report
) -> dict[str, dict[str, Any]]:
    """Test accuracy as channels go by each signal's ranking, without any training.

    Signals that rank alike share one walk.

    Args:
      asked: the network.
      found: name -> what it says of every channel.
      names: which of them.
      sizes: how much to look at.
      report: told after every look.

    Returns:
      Name -> ``removed``, ``accuracy``, and ``at_1_percent``: channels that can go at 1 % loss.
    """
    images = list(subject.batches(asked, "test", sizes.test_examples, sizes.batch))
    judge = oracles.judge(asked.scene, images)
    widths = maps.module_widths(asked.scene.module)
    stride = max(1, round(sizes.look * sum(widths.values())))
    known: dict[removal.Order, removal.Curve] = {}
    made, names = {}, list(names)
    for done, name in enumerate(names):
        wanted = removal.order(found[name])
        if wanted not in known:
            known[wanted] = removal.walk(judge, widths, wanted, stride=stride, until=0.1)
        curve = known[wanted]
        made[name] = {**curve._asdict(), "at_1_percent": removal.endured(curve, 0.01)}
        report("curves, signals", done + 1, len(names))
    return made


def chosen(ranked: Iterable[Mapping[str, Any]], best: int) -> list[str]:
    """Names of the signals that get a removal curve: the best, the published and random ones.

    Args:
      ranked: of `rows`.
      best: how many of the algebra, beside the published ones.
    """
    names = [row["name"] for row in ranked]
    points = [name for name in names if name.count(".") == 3]
    outside = [name for name in names if name in PUBLISHED or name.startswith(RANDOM)]
    return list(dict.fromkeys([*points[:best], *outside]))


def study(asked: Subject, sizes: Sizes, report: Report) -> dict[str, Any]:
    """The whole study of one network, as plain data for JSON.

    Args:
      asked: the trained network.
      sizes: how much to look at.
      report: told what is being done.
    """
    measured = oracle(asked, sizes, report)
    found = algebra(asked, sizes, report) | others(asked, sizes)
    ranked = rows(measured, found)
    orders = {SIGNED: measured, ABSOLUTE: {g: np.abs(each) for g, each in measured.items()}}
    names = [*orders, *chosen(ranked, sizes.best)]
    walks = curves(asked, found | orders, names, sizes, report)
    return {
        "subject": subject.facts(asked),
        "channels": sum(maps.module_widths(asked.scene.module).values()),
        "sizes": sizes._asdict(),
        "oracle": {group: each.tolist() for group, each in measured.items()},
        "signals": ranked,
        "curves": walks,
    }


def _row(name: str, absolute: Agreement, signed: Agreement) -> dict[str, Any]:
    return {
        "name": name,
        "published": PUBLISHED.get(name),
        "per_layer": absolute.per_layer,
        "across": absolute.across,
        "across_signed": signed.across,
        "layers": absolute.layers,
    }


def _known(value: float | None) -> float:
    return -1.0 if value is None else value


def _alone(asked: Subject, name: str, batch: Mapping[str, Any]) -> Values:
    signal = signals.signal(name, asked.scene.module, asked.scene.channels)

    @jax.jit
    def value(params: Any, state: Any, batch: Any) -> Rewards:
        return signal.value(Evidence(params, {}, {}, state, batch))

    return host(value(asked.scene.params, asked.scene.model_state, batch))
