"""Step programs, compiled ahead of time: each once, its seconds and memory known."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from dce_jax import cost
from experiments import placement as placing
from experiments.placement import Placement


class Facts(NamedTuple):
    """What compiling a program told.

    Attributes:
      seconds: lowering and compiling.
      peak_bytes: arguments + outputs + temporaries - aliased, or None where XLA does not say.
    """

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Programs:
    """Compiled programs by name.

    Attributes:
      compiled: name -> executable. It accepts one set of shapes only, so a second compilation
        cannot happen unseen.
      facts: name -> what compiling told, this process's and, after a restart, earlier ones'.
      counts: name -> compilations, at most one per process.
      placement: of the arrays that the programs take and give.
    """

    compiled: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    placement: Placement = field(default_factory=Placement)


def call(
    programs: Programs, name: str, function: Callable[..., Any], *args: Any, donate: bool = False
) -> Any:
    """Runs a program, compiling it at its first call.

    Args:
      programs: where it is kept.
      name: of the program.
      function: pure function of ``args``.
      args: arrays or pytrees.
      donate: the buffers of the first argument are given up.
    """
    if name not in programs.compiled:
        begun = time.perf_counter()
        options = placing.jit_options(programs.placement, function, *args)
        jitted = jax.jit(function, donate_argnums=(0,) if donate else (), **options)
        compiled = jitted.lower(*args).compile()
        seconds = time.perf_counter() - begun
        memory = cost.memory(compiled)
        peak = None if memory is None else cost.peak_bytes(memory)
        programs.compiled[name] = compiled
        programs.facts[name] = Facts(seconds, peak)
        programs.counts[name] = 1
    found = programs.compiled[name](*args)
    return jax.block_until_ready(found) if placing.waits(programs.placement) else found


def recall(programs: Programs, facts: dict[str, Any]) -> None:
    """Takes over what an earlier process of the same run compiled and reported."""
    for name, values in facts.items():
        programs.facts.setdefault(name, Facts(*values))
        programs.counts.setdefault(name, 1)
