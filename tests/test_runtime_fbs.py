"""Feature boosting and suppression: how many channels run, which ones, and who has a gradient."""

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.networks import layers
from dce_jax.networks.units import GatedNorm
from dce_jax.runtime import MASKED, fbs, run


def boost(saliency, levels, density):
    """Decisions at one site from saliencies that are given, not predicted."""
    width = levels[-1]
    module = fbs.Boost((width,))
    kernel = jnp.concatenate([jnp.eye(width), jnp.zeros((1, width))])
    params = {"saliency0": {"kernel": kernel, "bias": jnp.zeros(width)}}
    decide = fbs.policy(module, params, (levels,), jnp.float32(0.3), density)
    return decide(0, saliency, None)


@pytest.mark.parametrize(
    ("density", "level"),
    [(0.05, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (0.7501, 2), (0.8, 3), (1.0, 3)],
)
def test_as_many_channels_as_the_share_asks_for_and_those_of_the_largest_saliency(density, level):
    saliency = jnp.abs(chains.numbers(6, 8))
    choice, _, note = jax.jit(lambda s, d: boost(s, (2, 4, 6, 8), d))(
        saliency, jnp.float32(density)
    )
    np.testing.assert_array_equal(choice.level, np.full(6, level))
    np.testing.assert_allclose(choice.scale, saliency, rtol=1e-6)
    np.testing.assert_allclose(note, saliency.mean(axis=-1), rtol=1e-5)
    count = 2 * (level + 1)
    for row, order in zip(np.asarray(saliency), np.asarray(choice.order), strict=True):
        assert set(order[:count]) == set(np.argsort(row)[-count:])


def test_every_image_may_have_a_share_of_its_own():
    saliency = jnp.abs(chains.numbers(4, 8))
    shares = jnp.asarray([0.25, 1.0, 0.5, 0.26])
    choice, _, _ = jax.jit(lambda s, d: boost(s, (2, 4, 6, 8), d))(saliency, shares)
    np.testing.assert_array_equal(choice.level, [0, 3, 1, 1])


def test_saliency_is_rectified_and_only_winners_have_a_gradient():
    chain, levels = chains.build("vgg"), ((2, 5), (3, 6))
    module = fbs.Boost((5, 6))
    params = chains.salient(module, (4, 5), 1.0)
    params["saliency0"]["bias"] += 1.0

    @chains.jit
    def gradients(x, extra, density):
        def loss(extra):
            policy = fbs.policy(module, params, levels, jnp.float32(0.0), density)

            def shifted(site, pooled, carry):
                choice, carry, note = policy(site, pooled, carry)
                return choice._replace(scale=choice.scale + extra[site]), carry, note

            found = run(chain, levels, chains.variables("vgg"), x, shifted, MASKED)
            return jnp.square(found.logits).sum(), found.choices

        return jax.grad(loss, has_aux=True)(extra)

    zeros = [jnp.zeros((chains.BATCH, width)) for width in (5, 6)]
    grads, choices = gradients(chains.images(), zeros, jnp.float32(0.4))
    for found, choice, count in zip(grads, choices, (2, 3), strict=True):
        assert np.min(choice.scale) == 0.0
        winners = np.zeros(choice.scale.shape, bool)
        np.put_along_axis(winners, np.asarray(choice.order)[:, :count], True, axis=-1)
        np.testing.assert_array_equal(np.asarray(found)[~winners], 0.0)
        assert np.mean(np.asarray(found)[winners] != 0.0) > 0.5


def test_saliencies_may_take_the_place_of_the_norms_scale():
    x, gates = chains.numbers(2, 4, 4, 3), jnp.abs(chains.numbers(2, 3, seed=1)).at[0, 1].set(0.0)
    norm = layers.norm("a", name="norm", train=False, dtype=jnp.float32)
    params = {"scale": chains.numbers(3, seed=2), "bias": chains.numbers(3, seed=3)}
    stats = {"mean": chains.numbers(3, seed=4), "var": jnp.abs(chains.numbers(3, seed=5))}
    variables = {"params": params, "batch_stats": stats}
    inside = GatedNorm(False, jnp.float32)
    found = jax.jit(lambda x, g: jax.nn.relu(inside.apply(variables, x, g)))(x, gates)
    wanted = jax.jit(lambda x, g: jax.nn.relu(norm.apply(variables, x)) * g[:, None, None])(
        x, gates
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(wanted).max() > 0.1
