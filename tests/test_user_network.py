"""The documented example of a user's own network runs as it is written."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "your_own_network.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Names that the document's one code block leaves behind."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    names = {"__name__": "example"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("example"))
        exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def test_the_compact_model_learned_the_digits(example):
    assert dict(example["small"].widths) == {"stream": 32, "hidden": 48}
    assert example["accuracy"] > 0.93
    assert example["model"].selection["stream"].shape == (32,)


def test_the_saved_model_is_the_trained_slab(example):
    trained, loaded = example["loop"].params, example["model"].variables["params"]
    assert jax.tree.structure(trained) == jax.tree.structure(loaded)
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_bandit_explored_every_channel_of_the_stream(example):
    bandit = example["state"].bandit
    assert int(bandit.selections) == 20
    for group, plays in bandit.plays.items():
        assert float(plays.min()) >= 1
        assert float(plays.sum()) == 20 * example["half"].compact[group]
        mean = np.asarray(bandit.sums[group] / plays)
        assert 0.0 < mean.max() <= 1.0
        # The compact model holds the best means.
        chosen = example["model"].selection[group]
        assert mean[chosen].min() >= np.delete(mean, chosen).max()


def test_both_gates_of_the_stream_are_read(example):
    shapes = jax.tree.map(jnp.shape, dict(example["pieces"].gate_shapes))
    assert shapes == {
        "block": {"gate:hidden": (2, 48), "gate:stream": (2, 32)},
        "gate:stream": (2, 32),
    }


def test_dropout_draws_in_training_alone(example):
    net, images = example["small"], example["images"][:8]
    variables = example["model"].variables
    runs = [
        net.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)})
        for train, seed in ((True, 0), (True, 1), (False, 0), (False, 1))
    ]
    assert not np.allclose(runs[0], runs[1])
    np.testing.assert_array_equal(runs[2], runs[3])


def test_the_table_shows_the_skip_connections_one_group(example):
    stream, hidden = example["channels"].table().split("hidden  C=96")
    for place in ("stem/kernel  axis 1", "block/down/kernel  axis 1", "head/kernel  axis 0"):
        assert f"params/{place}  offset 0" in stream
        assert f"params/{place}" not in hidden
