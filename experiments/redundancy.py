"""How many different features a layer has: the effective rank of its kernels.

Channels that grow alike under training span less than their number. The effective rank (Roy and
Vetterli, EUSIPCO 2007) counts directions by the entropy of the singular values: as many as
channels where all kernels are orthogonal, 1 where all are parallel.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dce_jax import saliency
from dce_jax.saliency import Kernels
from dce_jax.types import PyTree
from experiments import pooling, records
from experiments.summary import NONE, Result, judged_on, markdown, mean_and_spread


def effective_rank(kernels: Sequence[np.ndarray]) -> float:
    """Effective rank of the channels that kernels produce, each channel scaled to length 1.

    Args:
      kernels: float[..., K] each; the last axis is the channel, several kernels lie side by side.

    Returns:
      Between 1 and K; 0 where every kernel is zero.
    """
    rows = np.concatenate([k.reshape(-1, k.shape[-1]).T for k in kernels], axis=1)
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    energy = np.linalg.svd(rows / np.where(length > 0, length, 1.0), compute_uv=False) ** 2
    if not energy.sum() > 0:
        return 0.0
    share = energy[energy > 0] / energy.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def shares(params: PyTree, kernels: Kernels) -> dict[str, float]:
    """Group -> effective rank over K.

    Args:
      params: parameters of a network.
      kernels: group -> paths of the kernels that produce it (`dce_jax.channels.producers`).
    """
    found = {}
    for group, paths in kernels.items():
        made = [np.asarray(saliency.at(params, path)) for path in paths]
        found[group] = effective_rank(made) / made[0].shape[-1]
    return found


def table(paths: Sequence[Path]) -> str:
    """Markdown: effective rank over K of every row's compact models, and their accuracy.

    Raises:
      ValueError: results without effective ranks, or of networks with different groups.
    """
    results = records.gather(paths).results
    groups = pooling.group(results)
    names = list(_ranks(groups[0][0]))
    notes = pooling.differences(groups)
    rows = [_row(runs, names, note) for runs, note in zip(groups, notes, strict=True)]
    accuracy = f"{judged_on(results)} accuracy (n seeds)"
    return markdown(["method", "settings", *names, accuracy], rows, left=2)


def _row(runs: Sequence[Result], names: Sequence[str], note: str) -> list[str]:
    ranks = [_ranks(run) for run in runs]
    if any(list(found) != list(names) for found in ranks):
        raise ValueError(f"groups differ: {names} and {[list(found) for found in ranks]}")
    means = [f"{statistics.fmean(found[name] for found in ranks):.2f}" for name in names]
    accuracy = f"{mean_and_spread([run['test_accuracy'] for run in runs])} ({len(runs)})"
    return [runs[0]["method"], note or NONE, *means, accuracy]


def _ranks(result: Result) -> Mapping[str, float]:
    if "effective_rank" not in result:
        raise ValueError(
            f"a result of {result['method']} seed {result['seed']} holds no effective ranks: an "
            "earlier version made it; run it again"
        )
    ranks: Mapping[str, float] = result["effective_rank"]
    return ranks
