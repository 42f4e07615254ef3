"""Masked, switched and in chunks: one network, whatever is decided; only the last two skip."""

import functools
import itertools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.runtime import MASKED, SWITCHED, Choice, chunked, execute, replay, run

EXECUTIONS = {
    "masked": MASKED,
    "switched": SWITCHED,
    **{f"chunks of {size}": chunked(size) for size in (1, 3, chains.BATCH)},
    "chunks of 3, unrolled": chunked(3, unrolled=True),
}
FORMS = [
    *((net, "masked", kind) for net in chains.NETS for kind in ("nested", "own")),
    *((net, "switched", kind) for net in chains.NETS for kind in ("nested", "own")),
    ("vgg", "chunks of 3", "nested"),
    *((net, "chunks of 3", "scaled") for net in chains.NETS),
    ("vgg", "chunks of 3, unrolled", "scaled"),
    *((net, f"chunks of {size}", "scaled") for net in ("vgg", "projection") for size in (1, 7)),
]
KINDS = {
    "nested": {},
    "scaled": {"scaled": True},
    "own": {"scaled": True, "ordered": True},
}


def bare(name, form):
    def logits(variables, x, choices):
        levels = chains.LEVELS[name]
        chain, policy = chains.build(name), replay(choices)
        return run(chain, levels, variables, x, policy, EXECUTIONS[form]).logits

    return logits


@functools.cache
def program(name, form, kind):
    return chains.jit(bare(name, form))  # `kind` keeps programs of unlike choices apart


def logits(name, form, kind, choices, variables=None):
    variables = chains.variables(name) if variables is None else variables
    whole = functools.partial(program(name, form, kind), variables)
    if form == "switched":
        return chains.one_by_one(whole, chains.images(), choices)
    return np.asarray(whole(chains.images(), choices))


@pytest.mark.parametrize(("name", "form", "kind"), FORMS)
def test_every_form_is_the_plain_network_and_compiles_once(name, form, kind):
    seen = []
    for decision in chains.DECISIONS:
        choices = chains.decided(name, decision, **KINDS[kind])
        found = logits(name, form, kind, choices)
        np.testing.assert_allclose(
            found, chains.expected(name, choices), rtol=2e-5, atol=2e-5, err_msg=decision
        )
        seen.append(found)
    for one, other in itertools.pairwise(seen):
        assert np.abs(one - other).max() > 1e-2  # the decisions matter
    assert program(name, form, kind)._cache_size() == 1


@pytest.mark.parametrize("form", ["switched", "chunks of 3"])
def test_a_decision_that_a_batch_shares(form):
    name = "padding"
    shared = (Choice(jnp.asarray([1])), Choice(jnp.asarray([0])))
    each = jax.tree.map(lambda level: jnp.repeat(level, chains.BATCH), shared)
    found = program(name, form, "shared")(chains.variables(name), chains.images(), shared)
    np.testing.assert_allclose(found, chains.expected(name, each), rtol=2e-5, atol=2e-5)


def spoiled(name):
    """Variables with NaN in all that the smallest widths must not read."""
    chain = chains.build(name)
    smallest = {
        link.group: widths[0] for link, widths in zip(chain.sites, chains.LEVELS[name], strict=True)
    }

    def one(leaf, names):
        leaf = np.array(leaf)
        for axis, groups in enumerate(names.axes):
            if groups and groups[0] in smallest:
                np.moveaxis(leaf, axis, 0)[smallest[groups[0]] :] = np.nan
        return leaf

    found = {
        collection: jax.tree.map(one, tree, chain.channels.names(collection, tree))
        for collection, tree in chains.variables(name).items()
        if collection != "links"
    }
    # The head is not a site: it runs whole, on zeros.
    found["params"]["head"] = chains.variables(name)["params"]["head"]
    return {**chains.variables(name), **found}


@pytest.mark.parametrize("name", ["vgg", "projection"])
@pytest.mark.parametrize("form", ["switched", "chunks of 3"])
def test_what_is_not_chosen_is_not_computed(name, form):
    choices = chains.decided(name, "smallest")
    clean, spoilt = chains.variables(name), spoiled(name)
    damaged = sum(bool(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(spoilt))
    assert damaged >= 6
    assert np.isnan(logits(name, "masked", "nested", choices, spoilt)).all()
    found = logits(name, form, "nested", choices, spoilt)
    np.testing.assert_array_equal(found, logits(name, form, "nested", choices, clean))
    largest = chains.decided(name, "largest")
    assert np.isnan(logits(name, form, "nested", largest, spoilt)).all()


def convolutions(jaxpr):
    """Of a jaxpr outside of every branch, and the branches of each conditional in it."""
    outside, conditionals, platforms = 0, [], set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            outside += 1
        elif eqn.primitive.name == "platform_index":
            platforms.update(eqn.outvars)
        elif eqn.primitive.name == "cond" and eqn.invars[0] in platforms:
            outside += convolutions(eqn.params["branches"][-1].jaxpr)[0]
        elif eqn.primitive.name == "cond":
            branches = [convolutions(branch.jaxpr)[0] for branch in eqn.params["branches"]]
            conditionals.append(branches)
        else:
            for inner in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns")):
                if hasattr(inner, "eqns"):
                    more, deeper = convolutions(getattr(inner, "jaxpr", inner))
                    outside, conditionals = outside + more, conditionals + deeper
    return outside, conditionals


def test_a_site_is_one_conditional_of_as_many_convolutions_as_its_width_needs():
    for name, sites in (
        ("vgg", [[1] * 2, [1] * 6]),
        ("padding", [[0, 2, 2], [0, 2, 2, 2]]),
        ("projection", [[0, 2, 2], [1, 3, 3, 3]]),
    ):
        choices = jax.tree.map(lambda field: field[:1], chains.decided(name, "largest"))
        traced = jax.make_jaxpr(bare(name, "switched"))(
            chains.variables(name), chains.images(1), choices
        )
        assert convolutions(traced.jaxpr) == (1, sites)  # the first link alone always runs


@pytest.mark.parametrize("name", ["vgg", "padding"])
def test_gradients_in_scales_are_the_plain_networks_even_where_a_scale_is_zero(name):
    choices = chains.decided(name, "random", scaled=True)
    links = [link.group for link in chains.build(name).sites]
    variables, x = chains.variables(name), chains.images()

    def masked(scales):
        mine = tuple(c._replace(scale=s) for c, s in zip(choices, scales, strict=True))
        return jnp.sum(jnp.square(bare(name, "masked")(variables, x, mine)))

    def plain(gates, shares):
        return jnp.sum(jnp.square(chains.plain(name)(variables, x, gates, shares)))

    gates, shares = chains.factors(name, choices)
    found = chains.jit(jax.grad(masked))(tuple(c.scale for c in choices))
    reference = chains.jit(jax.grad(plain))(gates, shares)
    silent = []
    for group, mine, choice, widths in zip(links, found, choices, chains.LEVELS[name], strict=True):
        runs = np.arange(widths[-1]) < np.asarray(widths)[choice.level][:, None]
        wanted = np.where(runs, reference[group], 0.0)
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-3)
        silent.append(np.asarray(mine)[runs & (np.asarray(choice.scale) == 0)])
    assert np.abs(np.concatenate(silent)).max() > 1e-2


@pytest.mark.parametrize(
    ("execution", "changes", "message"),
    [
        (SWITCHED, {}, "7 decisions at stage0_block0, but a switch takes one"),
        (chunked(8), {}, "chunks of 8 images of a batch of 7: choose 1 to 7"),
        (chunked(2), {"ordered": True}, "choose channels of their own at stage0_block0"),
    ],
)
def test_decisions_that_an_execution_cannot_run_are_refused(execution, changes, message):
    name = "padding"
    policy = replay(chains.decided(name, "random", **changes))
    chain, levels = chains.build(name), chains.LEVELS[name]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda v, x: run(chain, levels, v, x, policy, execution).logits,
            chains.variables(name),
            chains.images(),
        )


@pytest.mark.parametrize("size", [0, -1])
def test_chunks_hold_an_image(size):
    with pytest.raises(ValueError, match=f"chunks of {size} images: choose 1 or more"):
        execute.chunked(size)


@pytest.mark.parametrize("execution", [SWITCHED, chunked(1)])
def test_training_is_masked(execution):
    with pytest.raises(ValueError, match=f"not {execution.name}, MASKED"):
        run(chains.build("vgg"), (), {}, chains.images(), replay(()), execution, train=True)
