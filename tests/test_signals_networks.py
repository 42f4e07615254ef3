"""Signals on the library's networks: against literal derivatives, gates, and each other."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, data, example
from flax.core import FrozenDict
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nets import (
    ConvNet,
    batch,
    channel_map,
    cross_entropy,
    evidence,
    split,
    variables,
    x64,
)
from signal_nets import FULL, Stack, flat, scene

from dce_jax import channels, cost, forward, networks, saliency, signals
from dce_jax.signals import curvature, elements, scaling, sites

SHAPE = (4, 4, 3)
VGG = networks.VGG(depths=(1, 1), widths=FrozenDict(conv0=4, conv1=5), num_classes=3)


@pytest.fixture(autouse=True, scope="module")
def cheap():
    """Compiling is what these tests spend their time on."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def of_network(module, shape=SHAPE, size=3):
    """A library network of random numbers with running statistics, on random examples."""
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    found = channels.build(module, forward.shapes(module, images))
    params, state = split(variables(module, images))
    return signals.Scene(module, found, params, state, batch(size=size, shape=shape))


@functools.cache
def program(names, module, found, options=()):
    """Values of some signals as one compiled function of everything that is an array."""
    asked = [signals.parse(name) for name in names]

    def run(params, state, data, key):
        of = signals.Scene(module, found, params, state, data)
        values = signals.values(asked, of, key=key, **dict(options))
        return {str(formula): value for formula, value in values.items()}

    return jax.jit(run)


def values(names, of, key=0, **options):
    run = program(tuple(names), of.module, of.channels, tuple(options.items()))
    return run(of.params, of.model_state, of.batch, jax.random.key(key))


def value(name, of, **options):
    return values([name], of, **options)[name]


def close(found, expected, *, rtol=2e-4):
    assert set(found) == set(expected)
    for group, values in expected.items():
        size = np.max(np.abs(values))
        assert size > 0
        np.testing.assert_allclose(found[group], values, rtol=rtol, atol=rtol * size)


# Literal derivatives: every example alone, every layer's output bumped.


def literal(of, layers):
    """x and g at the outputs of some layers, example by example, batch of one each."""
    images, labels = of.batch["image"], of.batch["label"]

    def run(bumps, picture, label):
        seen = {}

        def bump(method, args, kwargs, context):
            y = method(*args, **kwargs)
            path = context.module.path
            if path in layers and context.method_name == "__call__":
                seen[path] = y
                y = y + bumps[path] if bumps else y
            return y

        with nn.intercept_methods(bump):
            tree = {"params": of.params, **of.model_state}
            logits = of.module.apply(tree, picture[None])
        return cross_entropy(logits, label[None]), seen

    shapes = jax.eval_shape(lambda: run(None, images[0], labels[0])[1])
    zeros = {path: jnp.zeros(shape.shape) for path, shape in shapes.items()}
    one = jax.jit(jax.grad(run, has_aux=True))
    pairs = [one(zeros, *pair) for pair in zip(images, labels, strict=True)]
    return [
        ({p: np.asarray(x[p][0]) for p in x}, {p: np.asarray(g[p][0]) for p in g}) for g, x in pairs
    ]


def flatten(values):
    return values.reshape(-1, values.shape[-1])


POINTS = {
    "x": lambda x, _: x,
    "g": lambda _, g: g,
    "taylor": lambda x, g: -x * g,
    "hessian_diag_approx2": lambda x, g: 0.5 * (x * g) ** 2,
    "taylor_2nd_approx2": lambda x, g: -x * g + 0.5 * (x * g) ** 2,
}
REDUCED = {
    "sum": lambda f: f.sum(axis=0),
    "l1": lambda f: np.abs(f).sum(axis=0),
    "l2": lambda f: (f**2).sum(axis=0),
    "abs_sum": lambda f: np.abs(f.sum(axis=0)),
    "sqr_sum": lambda f: f.sum(axis=0) ** 2,
}
DIVIDED = {
    "none": lambda v, _: v,
    "l1": lambda v, _: v / np.abs(v).sum(),
    "l2": lambda v, _: v / np.sqrt((v**2).sum()),
    "elements": lambda v, count: v / count,
}


def kernels_alone(of, paths):
    """x and g of some kernels, the gradient of one example at a time."""

    @jax.jit
    @jax.grad
    def slope(params, picture, label):
        logits = of.module.apply({"params": params, **of.model_state}, picture[None])
        return cross_entropy(logits, label[None])

    def read(tree, path):
        return np.asarray(functools.reduce(lambda node, key: node[key], path, tree), np.float64)

    pairs = zip(of.batch["image"], of.batch["label"], strict=True)
    slopes = [slope(of.params, *pair) for pair in pairs]
    return [
        ({p: read(of.params, p) for p in paths}, {p: read(s, p) for p in paths}) for s in slopes
    ]


@pytest.mark.one_set
@pytest.mark.parametrize("base", ["activations", "weights"])
@pytest.mark.parametrize("family", ["vgg", "projection", "preact", "mobile", "dense"])
def test_every_first_order_signal_of_coupled_groups_is_its_literal_reference(family, base):
    of = of_network(TINY[family])
    producers = channels.producers(of.channels)
    # A stream is written more than once.
    assert family in ("vgg", "dense") or max(map(len, producers.values())) > 1
    if base == "activations":
        producers = {g: [path[:-1] for path in paths] for g, paths in producers.items()}
    every = {path for paths in producers.values() for path in paths}
    each = literal(of, every) if base == "activations" else kernels_alone(of, every)
    names = [".".join((base, *rest)) for rest in itertools.product(POINTS, REDUCED, DIVIDED)]
    found = values(names, of)
    for group, paths in producers.items():
        pairs = [[np.concatenate([flatten(t[p]) for p in paths]) for t in one] for one in each]
        for name in names:
            _, point, reduced, divided = name.split(".")
            parts = [REDUCED[reduced](POINTS[point](*map(np.float64, pair))) for pair in pairs]
            expected = DIVIDED[divided](np.mean(parts, axis=0), len(pairs[0][0]))
            close({group: found[name][group]}, {group: expected})


def test_signals_are_of_inference_mode():
    # Running statistics decide, not the batch's: one example alone has the value it has in company.
    of, name = of_network(VGG), "activations.taylor.abs_sum.none"
    rows = [{k: v[i : i + 1] for k, v in of.batch.items()} for i in range(3)]
    alone = [value(name, of._replace(batch=row)) for row in rows]
    found = value(name, of)
    close(found, {g: np.mean([each[g] for each in alone], axis=0) for g in found})
    moved = jax.tree.map(lambda leaf: leaf * 1.5, of.model_state)
    assert not np.allclose(flat(value(name, of._replace(model_state=moved))), flat(found))


@pytest.mark.parametrize("family", ["dense"])  # concatenations, and streams read many times
def test_units_are_what_the_gates_multiply(family):
    module, size = TINY[family], 4
    params, state = split(variables(module, example(family)))
    of = signals.Scene(module, channel_map(module, example(family)), params, state, data(family))
    seen = evidence(module, variables(module, example(family)), data(family), train=False)
    gates = {g: size * np.asarray(sum(parts)) for g, parts in seen.gates.items()}
    names = ("units.taylor.abs_sum.none", "units.taylor.sqr_sum.none")
    taylor, squared = values(names, of).values()
    close(taylor, {g: np.mean(np.abs(v), axis=0) for g, v in gates.items()})
    close({g: 0.5 * v for g, v in squared.items()}, saliency.fisher().value(seen))


# What need not be held.


def test_outputs_give_the_weights_sums_without_derivatives_of_kernels(monkeypatch):
    of = scene(Stack(activation=nn.relu))
    asked = [f"weights.taylor.{reduction}.none" for reduction in ("sum", "abs_sum", "sqr_sum")]
    whole = values([*asked, "weights.taylor.l1.none"], of)

    def never(*args, **kwargs):
        raise AssertionError("kernel by kernel")

    monkeypatch.setattr(elements, "weights", never)
    for name, found in values(asked, of).items():
        close(found, whole[name])


def temporaries(run, *args):
    return cost.memory(jax.jit(run).lower(*args).compile()).temporaries


def signal_temporaries(name, of):
    run = program((name,), of.module, of.channels)
    return temporaries(run, of.params, of.model_state, of.batch, jax.random.key(0))


def test_derivatives_of_activations_take_no_more_than_a_backward_pass():
    module = networks.VGG((2, 1), FrozenDict(conv0=8, conv1=8, conv2=16), num_classes=3)
    of = of_network(module, (8, 8, 3), size=32)

    def loss(params, images, labels):
        tree = {"params": params, **of.model_state}
        return cross_entropy(module.apply(tree, images), labels)

    backward = temporaries(jax.grad(loss), of.params, *of.batch.values())
    for name in ("taylor.abs_sum", "hessian_diag_approx2.l1", "g.l2"):
        assert signal_temporaries(f"activations.{name}.none", of) < 1.1 * backward


def test_the_weights_linear_sums_take_no_kernels_per_example():
    module = networks.VGG((1, 1), FrozenDict(conv0=32, conv1=32), num_classes=3)
    of = of_network(module, size=32)
    linear, each = (
        signal_temporaries(f"weights.taylor.{reduction}.none", of) for reduction in ("sum", "l1")
    )
    kernels = 32 * 9 * 32 * 32 * 4  # bytes of the second convolution's, for 32 examples
    assert linear < kernels < each


def test_chunks_are_the_whole():
    of, name = scene(Stack(activation=nn.relu), size=5), "weights.taylor_2nd.l1.none"
    close(value(name, of, chunk=2), value(name, of), rtol=1e-5)


# Second derivatives.


@pytest.mark.parametrize("base", ["activations", "weights"])
def test_the_diagonal_is_exact_and_not_negative_where_logits_are_piecewise_linear(base):
    of = of_network(VGG, size=2)
    names = [f"{base}.hessian_diag.{reduction}.none" for reduction in ("sum", "l1")]
    total, absolute = values(names, of).values()
    close(total, values(names[:1], of, second=EXACT)[names[0]], rtol=1e-3)
    close(total, absolute, rtol=1e-5)
    again = values(names, of, key=7)[names[0]]
    np.testing.assert_array_equal(flat(total), flat(again))  # nothing is left to chance


EXACT = signals.exact()


def bent(u):
    """Logits of three classes that bend in six numbers, and in pairs of them."""
    draw = np.random.default_rng(4)
    first, second = draw.normal(size=(6, 5)), draw.normal(size=(5, 3))
    return jnp.tanh(jnp.concatenate([u[("p",)], u[("q",)]]) @ first) @ second


def estimated(second, blocks, count):
    point = {("p",): jnp.asarray([0.3, -0.2]), ("q",): jnp.asarray([0.5, 0.1, -0.7, 0.9])}
    label = jnp.asarray(1, jnp.int32)
    each = jax.jit(jax.vmap(lambda key: second(bent, point, label, key, blocks)))
    found = each(jax.random.split(jax.random.key(0), count))
    flatten, _ = jax.flatten_util.ravel_pytree(point)
    matrix = jax.hessian(lambda v: curvature.loss(bent({("p",): v[:2], ("q",): v[2:]}), label))(
        flatten
    )
    return np.concatenate([found[("p",)], found[("q",)]], axis=1), np.diag(matrix)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("make", [signals.diagonal, signals.hutchinson])
def test_estimates_are_unbiased_where_logits_bend(make, together):
    blocks = [[("p",), ("q",)]] if together else [[("p",)], [("q",)]]
    with x64():
        found, expected = estimated(make(2), blocks, 4_000)
        assert np.min(expected) < 0  # not what Gauss-Newton alone could give
        spread = np.std(found, axis=0) / np.sqrt(len(found))
        assert np.max(spread) < 0.05
        np.testing.assert_array_less(np.abs(found.mean(axis=0) - expected), 4.5 * spread + 1e-12)
        exact, _ = estimated(signals.exact(4), blocks, 1)
        np.testing.assert_allclose(exact[0], expected, rtol=1e-10)


# What a formula implies.

RESCALED = ("taylor", "hessian_diag", "hessian_diag_approx2", "taylor_2nd", "taylor_2nd_approx2")


@settings(max_examples=3, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(st.integers(0, 3), st.floats(0.2, 5.0), st.integers(0, 99))
def test_rescaling_a_channel_and_its_consumer_leaves_taylor_and_fisher(channel, factor, seed):
    with x64():
        module = Stack(activation=nn.relu, dtype=jnp.float64)
        of = scene(module, seed=seed, size=2, side=3)
        up = jnp.ones(FULL["a"]).at[channel].set(factor)
        params = {name: dict(layer) for name, layer in of.params.items()}
        params["conv_a"]["kernel"] *= up.reshape(1, 1, 1, -1)
        params["conv_a"]["bias"] *= up
        params["conv_b"]["kernel"] /= up.reshape(1, 1, -1, 1)
        names = [
            *(f"{base}.{p}.l1.none" for base in ("activations", "weights") for p in RESCALED),
            *("weights.taylor.sqr_sum.none", "weights.taylor_2nd.sum.none"),
            *("activations.taylor.sqr_sum.none", "activations.x.l1.none", "activations.g.l1.none"),
        ]
        before, after = (values(names, of._replace(params=tree)) for tree in (of.params, params))
        for name in names[:-2]:
            np.testing.assert_allclose(flat(after[name]), flat(before[name]), rtol=1e-9)
        for name, times in zip(names[-2:], (up, 1 / up), strict=True):
            np.testing.assert_allclose(after[name]["a"], before[name]["a"] * times, rtol=1e-9)
            np.testing.assert_allclose(after[name]["b"], before[name]["b"], rtol=1e-9)


def test_under_a_train_mode_norm_the_weights_sum_of_x_g_vanishes():
    # A norm takes a filter's scale away again, so the loss is flat along the filter.
    module, tree = ConvNet(), variables(ConvNet())
    found = {}
    for train in (True, False):
        seen = evidence(module, tree, batch(), train=train)
        found[train] = {
            group: (
                np.sum(np.asarray(x * g, np.float64), axis=(0, 1, 2)),
                np.sum(np.abs(np.asarray(x * g, np.float64)), axis=(0, 1, 2)),
            )
            for group in module.widths
            for x, g in [
                (seen.params[f"conv_{group}"]["kernel"], seen.grads[f"conv_{group}"]["kernel"])
            ]
        }
    for group in module.widths:
        total, size = found[True][group]
        assert np.max(np.abs(total) / size) < 1e-3  # what is left is the norm's epsilon
        total, size = found[False][group]
        assert np.max(np.abs(total) / size) > 1e-1


# Scalings on networks whose groups lie on many leaves.


@pytest.mark.parametrize("family", ["padding", "mobile"])
def test_weights_removed_are_the_parameters_that_a_channel_takes_along(family):
    module = TINY[family]
    found = channel_map(module, example(family))
    active = {g: max(2, c - i % 3) for i, (g, c) in enumerate(found.full.items())}

    def count(widths):
        shapes = forward.shapes(channels.with_widths(module, widths), example(family))
        return cost.parameters(nn.unbox(shapes)["params"])

    for group, width in active.items():
        fewer = count({**active, group: width - 1})
        assert scaling.weights_removed(found, active, group) == count(active) - fewer > 0


def test_cardinalities_follow_the_inputs_that_exist_or_that_are_active():
    module = TINY["projection"]
    narrow = {**module.widths, "stage0": 2}
    of = of_network(channels.with_widths(module, narrow))
    of = of._replace(channels=of_network(module).channels)
    whole, active = (
        {b: scaling.cardinality(of, b, widths, "s") for b in ("weights", "activations")}
        for widths in (module.widths, narrow)
    )
    inner = "stage0_block0_conv0"
    assert whole["weights"][inner] == 9 * 4 and active["weights"][inner] == 9 * 2
    assert whole["activations"][inner] == 16 * 4 and active["activations"][inner] == 16 * 2
    # stage1 is written by the last convolution of its block and by the 1x1 projection.
    second = module.widths["stage1_block0_conv0"]
    assert whole["weights"]["stage1"] == 9 * second + 4
    assert active["activations"]["stage1"] == 4 * (second + 2)


def test_units_elements_are_the_positions_of_all_their_gates():
    of = of_network(TINY["projection"])  # a stream is gated in front of each block
    found = scaling.elements(of, "units", of.module.widths, "s")
    places = [
        (path, site.shape)
        for path, site in sites.checked(of, "units", "s").items()
        if "stage0" in site.places
    ]
    assert found["stage0"] == sum(h * w for _, (h, w, _) in places) and len(places) > 1
    assert found["stage0_block0_conv0"] == SHAPE[0] * SHAPE[1]


# What is refused.


class Bare(nn.Module):
    """A kernel that no layer holds, an output nobody gates, and a layer that runs twice."""

    widths: FrozenDict = FrozenDict({"a": 3})
    kind: str = "held"

    @nn.compact
    def __call__(self, x):
        named, width = nn.with_logical_partitioning, self.widths["a"]
        normal = nn.initializers.normal()
        if self.kind == "held":
            x = x @ self.param("kernel", named(normal, (None, "a")), (x.shape[-1], width))
        elif self.kind == "none":
            x = x[..., :1] + self.param("shift", named(normal, ("a",)), (width,)).reshape(1, -1)
        else:
            layer = nn.Dense(
                width,
                kernel_init=named(normal, (None, "a")),
                bias_init=named(normal, ("a",)),
                name="layer",
            )
            x = layer(x) + layer(2.0 * x)
        return x @ self.param("head", named(normal, ("a", None)), (width, 3))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("none", "weights.x.l1.none", "'weights.x.l1.none' reads .* group 'a', but no kernel has"),
        ("none", "activations.taylor.l1.none", "no kernel has 'a' alone on its last axis: produce"),
        ("none", "weights.geometric_median", "no kernel has 'a' alone on its last axis"),
        (
            "held",
            "activations.x.l1.none",
            "no activations of group 'a' .*hold its kernel in an nn.Conv",
        ),
        ("held", "units.taylor.sum.none", r"no units of group 'a' .*call dce_jax.networks.gate\("),
        ("held", "units.apoz", "no units of group 'a'"),
        ("twice", "activations.g.l1.none", "layer runs 2 times .* a layer of its own"),
    ],
)
def test_a_signal_without_its_base_is_refused_by_group(kind, name, message):
    module, example = Bare(kind=kind), jnp.ones((2, 5))
    shapes = forward.shapes(module, example)
    tree = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), nn.unbox(shapes)["params"])
    seen = saliency.Evidence(tree, {}, {}, {}, {"image": example, "label": jnp.zeros(2, jnp.int32)})
    with pytest.raises(ValueError, match=message):
        signals.signal(name, module, channels.build(module, shapes)).value(seen)


def test_weights_need_no_layer_and_without_derivatives_no_examples():
    module, example = Bare(), jnp.ones((2, 5))
    shapes = forward.shapes(module, example)
    found = channels.build(module, shapes)
    params = {"kernel": jnp.arange(15.0).reshape(5, 3) - 7.0, "head": jnp.ones((3, 3))}
    bare = signals.Scene(module, found, params, {})
    l1 = value("weights.x.l1.none", bare)["a"]
    np.testing.assert_allclose(l1, np.abs(np.asarray(params["kernel"])).sum(axis=0))
    with pytest.raises(ValueError, match=r"'weights.g.l1.none' is read off labelled examples, but"):
        value("weights.g.l1.none", bare)
    labelled = bare._replace(batch={"image": example, "label": jnp.zeros(2, jnp.int32)})
    # No layer to gate: the sum is taken over the kernel's own derivatives.
    names = [f"weights.{p}.sum.none" for p in ("taylor", "taylor_2nd_approx2")]
    close(value(names[0], labelled), values(names, labelled)[names[0]])
