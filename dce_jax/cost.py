"""What a function costs: multiply-accumulates and parameters from its jaxpr, memory from XLA.

A count is read off the jaxpr, never off ``compiled.cost_analysis()``, which counts the body of a
scan once and cannot look into library calls of a GPU. A function is traced, not run, so its
arguments may be ``jax.ShapeDtypeStruct``.

A multiply-accumulate (MAC) is one multiplication with its addition, in ``conv_general_dilated``
and ``dot_general`` alone: norms, activations and pooling count nothing, as in published counts.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jax_core

from dce_jax.types import PyTree

# Scopes that jax.checkpoint adds to those of the network.
_JAX_SCOPES = frozenset({"checkpoint", "rematted_computation"})


class LayerCost(NamedTuple):
    """Cost of one module of a network.

    Attributes:
      name: path of the module below the network, such as ``"stage0/conv1"``; empty for work
        outside every submodule.
      macs: multiply-accumulates, all calls of the module together.
    """

    name: str
    macs: int


class Memory(NamedTuple):
    """Bytes that one compiled program needs on its device.

    Attributes:
      arguments: bytes of the arguments.
      outputs: bytes of the results.
      temporaries: bytes of the buffers in between.
      aliased: bytes of the results that reuse an argument's buffer (donation).
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int


def macs(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-accumulates of ``fn(*args)``.

    A convolution costs output elements x kernel positions x input features / feature groups.
    Padded positions count, as in published counts; the zeros that a transposed convolution puts
    between its inputs do not. Inner functions (``jit``, ``remat``, custom derivatives, ...) are
    counted wherever they are called, a scan's body times its length, of a ``cond`` or ``switch``
    the most expensive branch, of ``platform_dependent`` the default. Inside ``shard_map`` the count
    is one device's share.

    Args:
      fn: a function that JAX can trace.
      *args: its positional arguments: trees of arrays or of ``jax.ShapeDtypeStruct``. Bind
        anything static (a ``train`` flag) beforehand, in a lambda or with ``functools.partial``.

    Returns:
      The number of multiply-accumulates.

    Raises:
      ValueError: the number cannot be read off the jaxpr: a convolution or product runs inside
        a while loop, a Pallas kernel or a ragged product.
    """
    return sum(count for _, count in _walk(jax.make_jaxpr(fn)(*args), ()))


def layers(fn: Callable[..., Any], *args: Any) -> tuple[LayerCost, ...]:
    """Counts the multiply-accumulates of each Linen module in ``fn(*args)``.

    Modules are told apart by the name stack of each equation, so any ``jax.named_scope`` makes a
    layer too. Forward and backward work of a module are added up.

    Args:
      fn: as for ``macs``, usually ``lambda variables, x: network.apply(variables, x)``.
      *args: as for ``macs``.

    Returns:
      One entry per module with work of its own, in order of first execution. Their sum is
      ``macs(fn, *args)``.

    Raises:
      ValueError: as for ``macs``.
    """
    totals: dict[tuple[str, ...], int] = {}
    for path, count in _walk(jax.make_jaxpr(fn)(*args), ()):
        totals[path] = totals.get(path, 0) + count
    totals = {path: count for path, count in totals.items() if count}
    roots = {path[0] for path in totals if path}
    # The network itself is the first scope of every path, and its name tells nothing.
    below_root = len(roots) == 1 and any(len(path) > 1 for path in totals)
    merged: dict[str, int] = {}
    for path, count in totals.items():
        name = "/".join(path[1:] if below_root else path)
        merged[name] = merged.get(name, 0) + count
    return tuple(LayerCost(name, count) for name, count in merged.items())


def parameters(params: PyTree) -> int:
    """Counts the elements of a parameter tree.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``, with or without Flax's axis metadata.

    Returns:
      The number of elements of all leaves.
    """
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))


def memory(compiled: Any) -> Memory | None:
    """Reads XLA's own account of a compiled program's buffers.

    Args:
      compiled: a ``jax.stages.Compiled``, as ``jax.jit(fn).lower(*args).compile()`` returns it.

    Returns:
      Bytes on the device, or None on a backend that keeps no such account.

    Raises:
      ValueError: ``compiled`` is not a compiled program.
    """
    if not hasattr(compiled, "memory_analysis"):
        raise ValueError(
            f"memory needs a compiled program, got {type(compiled).__name__}: "
            "pass jax.jit(fn).lower(*args).compile()"
        )
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    names = ("argument", "output", "temp", "alias")
    return Memory(*(int(getattr(stats, f"{name}_size_in_bytes")) for name in names))


def peak_bytes(memory: Memory) -> int:
    """Adds up what a program holds at once: arguments + outputs + temporaries - aliased.

    Args:
      memory: bytes of one compiled program.

    Returns:
      Bytes.
    """
    return memory.arguments + memory.outputs + memory.temporaries - memory.aliased


def kept_bytes(fn: Callable[..., Any], params: PyTree, *args: Any) -> int:
    """Bytes that the backward pass of ``fn(params, *args)`` finds from its forward pass.

    What `jax.vjp` keeps, before XLA decides what to compute again and what to write to memory; it
    holds the arguments that are read again, such as kernels. Traced, not run and not compiled.

    Args:
      fn: its value is differentiated with respect to ``params``.
      params: arrays or `jax.ShapeDtypeStruct` trees of floats.
      *args: the same, of anything.

    Returns:
      Bytes.
    """

    def kept(params: PyTree, *args: Any) -> Any:
        return jax.vjp(lambda params: fn(params, *args), params)[1]

    return tree_bytes(jax.eval_shape(kept, params, *args))


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _walk(jaxpr: Any, scope: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields (scopes, MACs) of each product and convolution, in order of execution."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        # The name stack of an inner jaxpr starts anew below that of the equation that calls it.
        inner = scope + tuple(str(eqn.source_info.name_stack).split("/"))
        if name == "dot_general":
            yield _module_path(inner), _dot_macs(eqn)
        elif name == "conv_general_dilated":
            yield _module_path(inner), _conv_macs(eqn)
        elif name == "scan":
            for path, count in _walk(eqn.params["jaxpr"], inner):
                yield path, count * eqn.params["length"]
        elif name == "cond":
            branches = [list(_walk(branch, inner)) for branch in eqn.params["branches"]]
            platforms = eqn.params.get("branches_platforms") or ()
            default = platforms.index(None) if None in platforms else None
            yield from max(branches, key=_total) if default is None else branches[default]
        else:
            found = [item for sub in _subjaxprs(eqn.params.values()) for item in _walk(sub, inner)]
            _refuse_uncountable(name, "/".join(_module_path(inner)), _total(found))
            yield from found


def _refuse_uncountable(primitive: str, where: str, inside: int) -> None:
    """Raises where a primitive's work is not in its jaxpr: better no number than a wrong one."""
    at = f" in {where}" if where else ""
    if primitive == "while" and inside:
        raise ValueError(
            f"a while loop{at} holds {inside} multiply-accumulates a turn and its number of turns "
            "is not known: use lax.scan, or lax.fori_loop with Python ints as bounds"
        )
    if primitive == "pallas_call" or primitive.startswith("ragged_dot"):
        raise ValueError(
            f"the multiply-accumulates of {primitive}{at} cannot be read off the jaxpr: "
            "count a version of the function that uses plain products"
        )


def _total(items: Iterable[tuple[tuple[str, ...], int]]) -> int:
    return sum(count for _, count in items)


def _subjaxprs(values: Iterable[Any]) -> Iterator[Any]:
    """Yields every jaxpr among an equation's parameters, whatever the parameter is called."""
    for value in values:
        if isinstance(value, (jax_core.Jaxpr, jax_core.ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _subjaxprs(value)


def _module_path(scopes: tuple[str, ...]) -> tuple[str, ...]:
    """Turns ``("transpose(jvp(Net))", "jvp(Net)", "conv0.method")`` into ``("Net", "conv0")``."""
    bare = (re.sub(r"\w+\(|\)", "", scope).split(".")[0] for scope in scopes)
    named = (scope for scope in bare if scope and scope not in _JAX_SCOPES)
    # Rematerialised and scanned bodies repeat the scope they are called from.
    return tuple(name for name, _ in groupby(named))


def _dot_macs(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs_shape = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs_shape[i] for i in contracted)


def _conv_macs(eqn: Any) -> int:
    """Output batch x output features x input features of a group x (output, kernel) positions."""
    numbers = eqn.params["dimension_numbers"]
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    pairs = math.prod(
        _tap_pairs(out[out_axis], kernel[kernel_axis], stride, pad[0], spread, dilation)
        for out_axis, kernel_axis, stride, pad, spread, dilation in zip(
            numbers.out_spec[2:],
            numbers.rhs_spec[2:],
            eqn.params["window_strides"],
            eqn.params["padding"],
            eqn.params["lhs_dilation"],
            eqn.params["rhs_dilation"],
            strict=True,
        )
    )
    # The kernel's input axis is already divided by feature_group_count.
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    return batch * features * kernel[numbers.rhs_spec[1]] * pairs


def _tap_pairs(out: int, kernel: int, stride: int, pad: int, spread: int, dilation: int) -> int:
    """Counts the (output, kernel) positions of one axis that do not meet an inserted zero."""
    if spread == 1:
        return out * kernel
    starts = np.arange(out)[:, np.newaxis] * stride - pad
    return int(np.sum((starts + np.arange(kernel) * dilation) % spread == 0))
