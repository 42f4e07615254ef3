"""Short, narrow versions of every family of networks, and what is checked of each."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import batch, bits, channel_map, evidence, mask, positions, split, variables
from steps import host, setup

from dce_jax import budget, channels, compact, cost, forward, networks, saliency, step
from dce_jax.networks.densenet import densenet_widths
from dce_jax.networks.mobilenet import mobilenet_widths
from dce_jax.networks.preact import preact_widths
from dce_jax.networks.stages import group_widths
from dce_jax.parts import norm_parts

EXAMPLE = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
LARGE = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

TINY = {
    "vgg": networks.VGG((2, 1), FrozenDict({"conv0": 4, "conv1": 6, "conv2": 9}), 3),
    "padding": networks.ResNet((2, 1), group_widths((2, 1), (4, 8)), 3, shortcut="padding"),
    "projection": networks.ResNet((2, 1), group_widths((2, 1), (4, 6)), 3),
    "large": networks.ResNet((1, 1), group_widths((1, 1), (4, 6)), 3, large=True),
    "bottleneck": networks.ResNet(
        (1, 1),
        group_widths((1, 1), (2, 3), bottleneck=True, stem=5),
        3,
        bottleneck=True,
        large=True,
    ),
    "preact": networks.PreactResNet((2, 1), preact_widths((2, 1), (2, 3), stem=4), 3),
    "dense": networks.DenseNet((2, 2), densenet_widths((2, 2), stem=5, growth=4), 3),
    "dense-bc": networks.DenseNet(
        (2, 1),
        densenet_widths((2, 1), stem=5, growth=3, bottleneck=True, compression=0.5),
        3,
        bottleneck=True,
    ),
    "mobile": networks.MobileNetV2(
        (1, 2),
        (1, 1, 2),
        mobilenet_widths((1, 2), (4, 5), stem=6, last=7, expansion=2),
        3,
    ),
}
"""Depths and widths are data: these are the classes of the published networks."""

# Compiling is what these tests spend their time on.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MOMENTUM = optax.sgd(0.05, momentum=0.9)


def image(size, examples=1):
    return jax.ShapeDtypeStruct((examples, size, size, 3), jnp.float32)


def example(family):
    return LARGE if getattr(TINY.get(family), "large", False) else EXAMPLE


def data(family, seed=0, size=4):
    return batch(seed, size=size, shape=example(family).shape[1:])


def check_counts(name, size, classes, parameters, macs):
    """Parameters and MACs of the full-width network, without computing anything."""
    net = networks.build(name, num_classes=classes)
    shapes = forward.shapes(net, image(size))
    assert cost.parameters(shapes["params"]) == parameters
    assert round(cost.macs(net.apply, shapes, image(size)) / 1e6, 1) == macs


def check_map_of_shapes(name, size):
    """The full-size network's map foretells every shape at unlike narrow widths."""
    net = networks.build(name, num_classes=10)
    found = channels.build(net, forward.shapes(net, image(size)))
    narrow = {g: max(1, c // 2 - i % 3) for i, (g, c) in enumerate(found.widths)}
    thin = channels.with_widths(net, narrow)
    channels.check_shapes(found, narrow, nn.unbox(forward.shapes(thin, image(size))))
    assert set(net.reward_norms()) == set(net.widths)


def make_signal(family, widths):
    """The free signal of a slab at ``widths``, read off the declared norms."""
    module = TINY[family]
    parts = norm_parts(channel_map(module, example(family)), widths)
    return saliency.norm_taylor(module.reward_norms(), parts)


def pieces_and_state(family, bud):
    return setup(
        TINY[family],
        bud,
        MOMENTUM,
        example=example(family),
        signal=make_signal(family, bud.compact),
    )


# The identities.


def check_full_budget(family, steps=2, *, rtol=1e-4, atol=2e-5):
    """A slab of every channel takes the plain dense optax step, written here once more."""
    module, full = TINY[family], budget.full(TINY[family].widths)
    pieces, state = pieces_and_state(family, full)
    everything = {g: jnp.arange(c, dtype=jnp.int32) for g, c in full.full.items()}

    @quick_jit
    def slab_step(state, images):
        inside, _ = step.observe(pieces, step.cut(pieces, state, everything), images)
        return step.leave(pieces, state, inside)[0]

    @quick_jit
    def dense_step(params, model_state, opt_state, images):
        def loss(params):
            logits, new = module.apply(
                {"params": params, **model_state},
                images["image"],
                train=True,
                mutable=list(model_state),
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, images["label"])
            return losses.mean(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = MOMENTUM.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state

    params, model_state = split(variables(module, example(family)))
    dense = (params, model_state, MOMENTUM.init(params))
    for i in range(steps):
        state = slab_step(state, data(family, i))
        dense = dense_step(*dense, data(family, i))
    ours = (state.loop.params, state.loop.model_state, state.loop.opt_state)
    assert jax.tree.structure(ours) == jax.tree.structure(dense)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def check_random_budgets(family, examples=1):
    """Compact equals slab and unselected bits stay, at budgets that hypothesis draws.

    Its first draw is the simplest: of widths that would be one channel everywhere, where neither
    offsets nor the order of indices matter. A seed has no simplest value.
    """

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 999))
    def check(seed):
        check_budget(family, random_budget(family, seed))

    check()


def random_budget(family, seed):
    """Any widths that cut two groups or more, and leave some group several channels."""
    widths, draw = TINY[family].widths, np.random.default_rng(seed)
    while True:
        found = budget.from_widths(
            widths, {g: int(draw.integers(1, c + 1)) for g, c in widths.items()}
        )
        if len(found.contested) > 1 and any(found.compact[g] > 1 for g in found.contested):
            return found


def random_selection(bud, seed):
    """Sorted, distinct channels of every group that is not whole."""
    draw, sizes = np.random.default_rng(seed), bud.compact
    return {
        g: np.sort(draw.permutation(bud.full[g])[: sizes[g]]).astype(np.int32)
        for g in bud.contested
    }


def check_budget(family, bud, selections=6):
    """Random selections, a step each: what comes out of the slab, and what stayed outside.

    All but the first meet moments and statistics that others have moved.
    """
    pieces, state = pieces_and_state(family, bud)
    unplayed, seen = state.bandit, set()

    @quick_jit
    def run(state, images):
        inside, metrics = step.observe(pieces, step.enter(pieces, state), images)
        return inside, step.leave(pieces, state, inside)[0], metrics["loss"]

    for i in range(selections):
        inside, after, loss = run(state._replace(bandit=unplayed), data(family, i))
        assert np.isfinite(loss)
        check_parts(pieces, bud, *map(host, (state, inside, after)))
        check_compact(family, bud, inside, after)
        seen.add(str(host(inside.selection)))
        state = after
    assert len(seen) > selections // 2


def check_compact(family, bud, inside, after):
    """The model cut out of the full network is the network that trained, array by array."""
    whole = {"params": after.loop.params, **after.loop.model_state}
    mapped = channel_map(TINY[family], example(family))
    model = compact.extract(mapped, bud, whole, inside.selection)
    slab = {"params": inside.loop.params, **inside.loop.model_state}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), model.variables, slab
    )


def check_parts(pieces, bud, before, inside, after):
    """What was selected is the slab's, bit for bit, and the rest is what it was."""
    chosen = compact.whole_selection(bud, inside.selection)
    moved = 0
    for collection, names in names_of(pieces):
        trees = (collection(before.loop), collection(after.loop), collection(inside.loop))
        for old, new, part, name in zip(*map(jax.tree.leaves, (*trees, names)), strict=True):
            touched = mask(name, chosen, pieces.full, old.shape)
            np.testing.assert_array_equal(bits(old[~touched]), bits(new[~touched]))
            cut = new[np.ix_(*rows(name, new.shape, chosen, pieces.full))]
            np.testing.assert_array_equal(bits(cut), bits(part))
            moved += np.sum(old[touched] != new[touched])
    assert moved > 0


def names_of(pieces):
    return [
        (lambda loop: loop.params, pieces.params_names),
        (lambda loop: loop.model_state, pieces.state_names),
        (lambda loop: loop.opt_state, pieces.opt_names),
    ]


def rows(name, shape, chosen, full):
    axes = name.axes or ((),) * len(shape)
    pairs = zip(axes, shape, strict=True)
    return [positions(g, chosen, full) if g else np.arange(size) for g, size in pairs]


# Rewards.


@functools.cache
def rewards(family, scale=1.0):
    """Free and gated batch-level Taylor of every group of a slab of unlike widths, and its module.

    Args:
      family: of `TINY`.
      scale: multiplies the norms' vectors.
    """
    full = TINY[family]
    widths = {g: max(2, c - i % 3) for i, (g, c) in enumerate(full.widths.items())}
    module = channels.with_widths(full, widths)
    tree = variables(module, example(family))
    tree = jax.tree.map(lambda leaf: leaf * scale if leaf.ndim == 1 else leaf, tree)
    seen = evidence(module, tree, data(family))
    free = make_signal(family, widths).value(seen)
    gated = saliency.batch_gate_taylor().value(seen)
    assert set(free) == set(gated) == set(full.widths)
    assert {g: len(v) for g, v in free.items()} == widths
    return jax.tree.map(np.asarray, (free, gated))


def check_rewards(family, groups=None, scale=1.0):
    """What the declared norms say is the gates' gradient, and says something of every group."""
    free, gated = rewards(family, scale)
    for group in free if groups is None else groups:
        assert np.max(free[group]) > 1e-4, group
        atol = 1e-3 * np.max(gated[group])
        np.testing.assert_allclose(free[group], gated[group], rtol=2e-3, atol=atol, err_msg=group)
