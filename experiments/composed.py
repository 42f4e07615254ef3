"""Variants of the benchmark as sums of what is timed, and the memory of their programs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dce_jax import cost
from experiments.timing import Contender, Program

Times = npt.NDArray[np.float64]
"""float64[rounds, something timed], ms."""


class Part(NamedTuple):
    """A contender's share in a variant's step.

    Attributes:
      contender: what is timed; variants may share it.
      share: times that one training step pays for what the contender calls a step.
    """

    contender: Contender
    share: float


class Variant(NamedTuple):
    """A row of the benchmark, ready to be timed.

    Attributes:
      variant: ``dense``, ``narrow``, ``slab``, ``committed`` or ``masked``.
      keep: fraction of every group's channels.
      select_every: R of a slab, else None.
      signal: reward of a slab, else None.
      macs: of one forward pass, one example.
      compile_s: seconds, all of its programs.
      temp_bytes: temporaries of the largest program, or None.
      peak_bytes: the most that is held at once: arguments + outputs + temporaries - aliased of a
        program, and the full state that waits outside while a slab trains; or None.
      outside_bytes: what of it is a slab's full state (parameters, moments, statistics), else 0.
      parts: what is timed, and how often a step pays for it.
    """

    variant: str
    keep: float
    select_every: int | None
    signal: str | None
    macs: int
    compile_s: float
    temp_bytes: int | None
    peak_bytes: int | None
    outside_bytes: int
    parts: tuple[Part, ...]


def contenders(built: Sequence[Variant]) -> list[Contender]:
    """What is to be timed, each once, in order of first use."""
    found = {part.contender.name: part.contender for one in built for part in one.parts}
    return list(found.values())


def combined(built: Sequence[Variant], times_RC: Times) -> Times:
    """Times of the contenders -> times of the variants, round by round.

    Args:
      built: the variants.
      times_RC: float64[rounds, contenders], ms per step, columns as in `contenders`.

    Returns:
      float64[rounds, variants], ms per training step.
    """
    column = {one.name: i for i, one in enumerate(contenders(built))}
    shares_CV = np.zeros((len(column), len(built)))
    for i, one in enumerate(built):
        for part in one.parts:
            shares_CV[column[part.contender.name], i] = part.share
    return times_RC @ shares_CV


def memory(programs: Sequence[Program], *, waiting: int = 0) -> tuple[int | None, int | None]:
    """Temporaries of the largest program, and the most bytes held at once.

    Args:
      programs: one, or (enter, inner, leave).
      waiting: bytes of the full state, which waits while inner runs and is an argument elsewhere.

    Returns:
      (bytes, bytes), or (None, None) where XLA keeps no account.
    """
    memories = [program.memory for program in programs if program.memory is not None]
    if len(memories) < len(programs):
        return None, None
    peaks = [cost.peak_bytes(memory) for memory in memories]
    if waiting:
        peaks[1] += waiting
    return max(memory.temporaries for memory in memories), max(peaks)
