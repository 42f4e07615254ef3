"""MACs and parameters of a network at any widths, from a single trace of the full one."""

import functools
import math

import flax.linen as nn
import jax

from dce_jax import channels, cost, forward
from experiments.budgeting import macs_of


def one(example):
    return jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype)


@functools.cache
def quick(module, example):
    """``{"macs": fn, "parameters": fn}`` from widths; a trace of the narrow network takes 0.2 s.

    A layer's MACs are its kernel's elements times a number of positions that no width changes; the
    channel map foretells the shapes.
    """
    variables = forward.shapes(module, one(example))
    found = channels.build(module, variables)
    kernels = {"/".join(leaf.path[:-1]): leaf for leaf in found.leaves if len(leaf.shape) > 1}
    layers = cost.layers(lambda v, x: module.apply(v, x), nn.unbox(variables), one(example))
    positions = [
        (kernels[layer.name], layer.macs // math.prod(kernels[layer.name].shape))
        for layer in layers
    ]
    counted = [(leaf, 1) for leaf in found.leaves if leaf.collection == "params"]
    return {"macs": _weighted(positions, found.full), "parameters": _weighted(counted, found.full)}


def _weighted(leaves, full):
    @functools.cache
    def count(sizes):
        narrow = dict(zip(full, sizes, strict=True))
        return sum(
            times * math.prod(leaf.names.cut(leaf.shape, full, narrow)) for leaf, times in leaves
        )

    return lambda widths: count(tuple(widths[group] for group in full))


@functools.cache
def traced(module, example):
    """The same by the functions that count: each narrow network is traced, once."""
    count_macs = macs_of(module, example)

    def count_parameters(widths):
        thin = channels.with_widths(module, widths)
        return cost.parameters(forward.shapes(thin, one(example))["params"])

    return {"macs": count_macs, "parameters": count_parameters}
