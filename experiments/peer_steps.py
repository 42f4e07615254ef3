"""The peers' training steps in PyTorch, ready to be timed beside those of the benchmark.

- *dense*: the ordinary step at full width.
- *narrow*: the ordinary step of the network at the budget's widths, from the start.
- *masked*: `torch.nn.utils.prune`: every forward pass multiplies the kernels by 0/1 masks.
- *pruned*: the dense network after Torch-Pruning has cut its channels out, once.

All start from the benchmark's own parameters, images and optimizer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from dce_jax import budget as budgets
from dce_jax import channels as maps
from experiments import machine, peer_networks
from experiments.bench import Bench, initial
from experiments.peers import Peer
from experiments.timing import Contender

TRIALS = 3
"""Steps of each memory layout whose median decides for one."""


class Task(NamedTuple):
    """What every peer trains on.

    Attributes:
      images: float32[B, D, H, W].
      labels: int64[B].
      learning_rate: of SGD.
    """

    images: torch.Tensor
    labels: torch.Tensor
    learning_rate: float


class _Candidate(NamedTuple):
    # A network in one memory layout.
    network: nn.Module
    prune_s: float | None
    run: Callable[[None, None], tuple[None, dict[str, float]]]


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def build(bench: Bench, keeps: Sequence[float], *, learning_rate: float) -> Iterator[Peer]:
    """Prepares the peers one by one: dense, then the others of each keep.

    Args:
      bench: what all variants of the benchmark share.
      keeps: fractions in (0, 1].
      learning_rate: of SGD.
    """
    torch.set_num_threads(machine.cores())
    task = batch(bench, learning_rate)
    params = initial(bench, bench.module).params
    dense = partial(peer_networks.build, bench.module, params)
    yield _peer(task, "dense", 1.0, dense)
    for keep in keeps:
        budget = budgets.from_fraction(bench.channels.full, keep)
        thin = maps.with_widths(bench.module, budget.compact)
        narrow = partial(peer_networks.build, thin, initial(bench, thin).params)
        yield _peer(task, "narrow", keep, narrow)
        yield _peer(task, "masked", keep, dense, partial(mask, keep=keep))
        pruned = partial(cut, keep=keep, image=task.images[:1])
        yield _peer(task, "pruned", keep, dense, pruned)


def batch(bench: Bench, learning_rate: float) -> Task:
    """The benchmark's images and labels for PyTorch."""
    images = np.asarray(bench.data["image"]).transpose(0, 3, 1, 2).copy()
    labels = np.array(bench.data["label"], np.int64)
    return Task(torch.from_numpy(images), torch.from_numpy(labels), learning_rate)


def count(keeps: Sequence[float]) -> int:
    """How many peers `build` yields."""
    return 1 + 3 * len(keeps)


def mask(network: nn.Module, *, keep: float) -> None:
    """Masks the output channels of every convolution whose kernels have the smallest l2 norm.

    Args:
      network: changed in place: each forward pass multiplies its kernels by masks.
      keep: share of the channels that stay.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            prune.ln_structured(layer, "weight", amount=1.0 - keep, n=2, dim=0)


def cut(network: nn.Module, *, keep: float, image: torch.Tensor) -> None:
    """Cuts channels out of every layer that shares them, by Torch-Pruning's dependency graph.

    Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; its magnitude pruner.

    Args:
      network: changed in place; its ``head`` keeps its outputs.
      keep: share of every group's channels that stay.
      image: float[1, D, H, W], for tracing.
    """
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=1.0 - keep,
        ignored_layers=[network.head],
    )
    pruner.step()


def optimizer(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """The benchmark's own (`bench.optimizer`), in PyTorch's fastest form."""
    return torch.optim.SGD(
        network.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4, fused=True
    )


def step(
    network: nn.Module, tx: torch.optim.Optimizer, task: Task, state: None, _: None
) -> tuple[None, dict[str, float]]:
    """One training step, in place, in the form that `timing.interleave` runs.

    Args:
      network: in training mode.
      tx: of its parameters.
      task: the batch.
      state: passed on; the network and its optimizer keep their own.
    """
    tx.zero_grad()
    loss = functional.cross_entropy(network(task.images), task.labels)
    loss.backward()
    tx.step()
    return state, {"loss": loss.item()}


def _candidate(
    task: Task,
    layout: str,
    make: Callable[[], nn.Module],
    change: Callable[[nn.Module], None] | None,
) -> _Candidate:
    network, seconds = make(), None
    if change is not None:
        begun = time.perf_counter()
        change(network)
        seconds = time.perf_counter() - begun
    memory_format = LAYOUTS[layout]
    for kernel in (*network.parameters(), *network.buffers()):
        if kernel.ndim == 4:
            kernel.data = kernel.data.to(memory_format=memory_format)
    task = task._replace(images=task.images.to(memory_format=memory_format))
    tx = optimizer(network.train(), task.learning_rate)
    return _Candidate(network, seconds, partial(step, network, tx, task))


def _peer(
    task: Task,
    variant: str,
    keep: float,
    make: Callable[[], nn.Module],
    change: Callable[[nn.Module], None] | None = None,
) -> Peer:
    found = {layout: _candidate(task, layout, make, change) for layout in LAYOUTS}
    times: dict[str, list[float]] = {layout: [] for layout in found}
    for _ in range(1 + TRIALS):
        for layout, one in found.items():
            begun = time.perf_counter()
            one.run(None, None)
            times[layout].append(1e3 * (time.perf_counter() - begun))
    trials = {layout: median(taken[1:]) for layout, taken in times.items()}
    layout = min(trials, key=trials.__getitem__)
    network, seconds, run = found[layout]
    params = sum(parameter.numel() for parameter in network.parameters())
    contender = Contender(f"torch {variant} at keep {keep:g}", run, lambda: None, None, 1)
    return Peer(variant, keep, params, layout, trials, seconds, contender)
