"""Tiny networks as chains, decisions of every kind, and the plain network that they must equal."""

import functools

import families
import jax
import jax.numpy as jnp
import nets
import numpy as np
from flax.core import FrozenDict

from dce_jax import channels, forward, masks, networks, runtime
from dce_jax.networks.stages import group_widths
from dce_jax.runtime import Choice

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
BATCH = 7  # no chunk size but 1 and 7 divides it

NETS = {
    "vgg": networks.VGG((1, 2), FrozenDict({"conv0": 4, "conv1": 5, "conv2": 6}), 3),
    "padding": networks.ResNet((1, 1), group_widths((1, 1), (4, 6)), 3, shortcut="padding"),
    "projection": networks.ResNet((1, 1), group_widths((1, 1), (4, 6)), 3),
}
LEVELS = {  # unlike numbers of widths, so that a wrong index shows
    "vgg": ((2, 5), (1, 4, 6)),
    "padding": ((0, 1, 4), (0, 2, 3, 6)),
    "projection": ((0, 1, 4), (0, 2, 3, 6)),
}
DECISIONS = ("largest", "smallest", "alternating", "opposed", "random")

jit = families.quick_jit


def images(batch=BATCH):
    return nets.batch(0, batch)["image"]


@functools.cache
def build(name):
    """The map without its proof, which is other tests' business."""
    net = NETS[name]
    return runtime.chain.chain(net, channels.build(net, forward.shapes(net, EXAMPLE)))


def variables(name):
    with jax.ensure_compile_time_eval():  # they are kept, and a trace may be the first to ask
        return nets.variables(NETS[name], EXAMPLE)


def decided(name, kind, *, scaled=False, ordered=False):
    """Choices of a batch, on the host; with scales, and orders of their own, where asked for."""
    draw = np.random.default_rng(DECISIONS.index(kind))
    found = []
    for site, (link, widths) in enumerate(zip(build(name).sites, LEVELS[name], strict=True)):
        last, width = len(widths) - 1, widths[-1]
        level = {
            "largest": np.full(BATCH, last),
            "smallest": np.zeros(BATCH),
            "alternating": np.arange(BATCH) % 2 * last,
            # Wide behind narrow and narrow behind wide.
            "opposed": (np.arange(BATCH) + site) % 2 * last,
            "random": draw.integers(0, last + 1, BATCH),
        }[kind].astype(np.int32)
        order = draw.permuted(np.tile(np.arange(width, dtype=np.int32), (BATCH, 1)), axis=1)
        scale = draw.uniform(0.3, 2.0, (BATCH, width)).astype(np.float32)
        scale[draw.random(scale.shape) < 0.2] = 0.0
        share = draw.uniform(0.3, 2.0, BATCH).astype(np.float32) if link.skippable else None
        choice = Choice(
            level,
            order if ordered else None,
            scale if scaled else None,
            share if scaled else None,
        )
        found.append(jax.tree.map(jnp.asarray, choice))
    return tuple(found)


def one_by_one(run, x, choices):
    """A function of one image and its decisions, on every image."""
    each = [
        run(x[i : i + 1], jax.tree.map(lambda field, i=i: field[i : i + 1], choices))
        for i in range(x.shape[0])
    ]
    return np.concatenate(each)


def factors(name, choices):
    """What multiplies channels and branches, in plain loops: group -> [B, C], name -> [B]."""
    gates, shares = {}, {}
    for link, widths, choice in zip(build(name).sites, LEVELS[name], choices, strict=True):
        level, order, scale, share = (None if f is None else np.asarray(f) for f in choice)
        gate, branch = np.zeros((len(level), widths[-1])), np.ones(len(level))
        for i, mine in enumerate(level):
            kept = np.arange(widths[-1]) if order is None else order[i]
            for channel in kept[: widths[mine]]:
                gate[i, channel] = 1.0 if scale is None else scale[i, channel]
            branch[i] = 0.0 if widths[mine] == 0 else 1.0 if share is None else share[i]
        gates[link.group] = jnp.asarray(gate, jnp.float32)
        if link.skippable:
            shares[link.name] = jnp.asarray(branch, jnp.float32)
    return gates, shares


@functools.cache
def plain(name):
    """``(variables, x, gates, shares) -> logits`` of the whole network, image by image.

    Rows that read a channel are multiplied by its gate, and the norm that ends a branch by its
    share: nothing of the runtime package is used.
    """
    net, names = NETS[name], build(name).channels

    def run(variables, x, gates, shares):
        def one(x, gates, shares):
            every = {g: jnp.ones(width) for g, width in names.full.items()} | gates
            params = variables["params"]
            params = masks.unread(params, names.names("params", params), every)
            for block, share in shares.items():
                last = jax.tree.map(lambda leaf, share=share: leaf * share, params[block]["norm1"])
                params = {**params, block: {**params[block], "norm1": last}}
            return net.apply({**variables, "params": params}, x[None])[0]

        return jax.vmap(one)(x, gates, shares)

    return run


@functools.cache
def jitted_plain(name):
    return jit(plain(name))


def expected(name, choices, x=None):
    x = images() if x is None else x
    return np.asarray(jitted_plain(name)(variables(name), x, *factors(name, choices)))


def drawn(shapes, seed=0, size=1.0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(size * draw.normal(size=leaf.shape), jnp.float32), shapes
    )


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def salient(module, sizes, size, seed=5):
    """Parameters whose logits are ``size`` times as large as those of a normal draw."""

    def initial(key):
        params = {}
        for site, width in enumerate(sizes):
            params |= module.init(key, jnp.zeros((1, width)), jnp.zeros(1), site=site)["params"]
        return params

    params = drawn(jax.eval_shape(initial, jax.random.key(0)), seed=seed)
    return {
        name: leaf
        if "hidden" in name or "scale" in name
        else {k: size * v for k, v in leaf.items()}
        for name, leaf in params.items()
    }


def everything(name):
    return tuple(Choice(jnp.full(BATCH, len(widths) - 1, jnp.int32)) for widths in LEVELS[name])
