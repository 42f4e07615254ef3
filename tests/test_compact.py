"""Compact models: what is cut is the slab, what is saved comes back, statistics are exact."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from nets import (
    VECTORS,
    ConcatNet,
    ConvNet,
    batch,
    channel_map,
    compiled,
    dense,
    same_bits,
    split,
    variables,
)
from steps import halves, setup

from dce_jax import budget, compact, step

MODULE = ConvNet()
HALF = halves(MODULE)
SELECTION = {"a": np.asarray([0, 3], np.int32), "b": np.asarray([1, 2, 5], np.int32)}


@functools.cache
def extracted():
    return compact.extract(channel_map(MODULE), HALF, variables(MODULE), SELECTION)


def thin(module, bud):
    return module.clone(widths=FrozenDict(bud.compact))


def test_the_compact_model_is_the_trained_slab_bit_for_bit(tmp_path):
    pieces, state = setup(MODULE, HALF, optax.sgd(0.05, momentum=0.9))
    inside = jax.jit(functools.partial(step.enter, pieces))(state)
    observe = jax.jit(functools.partial(step.observe, pieces))
    for r in range(2):
        inside, _ = observe(inside, batch(r))
    after, _ = jax.jit(functools.partial(step.leave, pieces))(state, inside)
    tree = {"params": after.loop.params, **after.loop.model_state}
    model = compact.extract(channel_map(MODULE), HALF, tree, inside.selection)
    compact.save(tmp_path, thin(MODULE, HALF), model)
    module, loaded = compact.load(tmp_path, ConvNet)
    slab = {"params": inside.loop.params, **inside.loop.model_state}
    same_bits(loaded.variables, slab)
    x = batch(5)["image"]
    slab_output, _ = compiled(thin(MODULE, HALF), False)(*split(slab), x)
    output, _ = compiled(module, False)(*split(loaded.variables), x)
    same_bits(output, slab_output)


def test_extraction_is_plain_indexing_and_spells_out_whole_groups():
    whole_b = budget.from_widths(MODULE.widths, {"a": 2, "b": 6})
    model = compact.extract(channel_map(MODULE), whole_b, variables(MODULE), {"a": SELECTION["a"]})
    kernel = np.asarray(variables(MODULE)["params"]["conv_b"]["kernel"])
    np.testing.assert_array_equal(
        model.variables["params"]["conv_b"]["kernel"], kernel[:, :, [0, 3]]
    )
    assert {g: s.tolist() for g, s in model.selection.items()} == {"a": [0, 3], "b": [*range(6)]}
    with pytest.raises(ValueError, match=r"selection of 'a' must be sorted"):
        compact.extract(channel_map(MODULE), whole_b, variables(MODULE), {"a": np.int32([3, 0])})


def test_a_saved_model_comes_back_with_widths_and_original_indices(tmp_path):
    compact.save(tmp_path / "new", MODULE, extracted())
    module, loaded = compact.load(tmp_path / "new", ConvNet)
    assert module.widths == {"a": 2, "b": 3}
    assert module.dtype == jnp.float32
    assert loaded.budget == HALF
    same_bits(loaded.variables, extracted().variables)
    same_bits(loaded.selection, extracted().selection)
    structure = json.loads((tmp_path / "new" / "structure.json").read_text())
    assert structure["widths"] == {"a": 2, "b": 3}
    assert structure["full_widths"] == {"a": 4, "b": 6}
    assert structure["channels"] == {"a": [0, 3], "b": [1, 2, 5]}
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == ["structure.json", "weights.safetensors"]


class Odd(nn.Module):
    """Attributes of every plain kind, a scalar parameter, and parameters in bfloat16."""

    widths: FrozenDict = FrozenDict({"a": 4})
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    sizes: tuple = (1, 2)
    rate: float | None = 0.5
    label: str = "none"
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.ones_init(), (), self.param_dtype)
        x = dense(self.widths["a"], (None, "a"), "one", self.dtype)(x)
        x = self.activation(x) * gain.astype(self.dtype)
        return dense(3, ("a", None), "head", self.dtype)(x)


def test_plain_attributes_scalars_and_bfloat16_come_back(tmp_path):
    module = Odd(
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        sizes=(3, (4, 5)),
        rate=None,
        label="x",
        activation=nn.gelu,
    )
    tree = variables(module, VECTORS)
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
    model = compact.Compact(tree, budget.full(module.widths), {"a": np.arange(4, dtype=np.int32)})
    compact.save(tmp_path, module, model)
    # Functions are no plain data: they are handed in, and asked for where they are not the default.
    with pytest.raises(ValueError, match=r"attributes \['activation'\] of the saved Odd are no pl"):
        compact.load(tmp_path, Odd)
    loaded, again = compact.load(tmp_path, Odd, activation=nn.gelu)
    assert loaded == module
    assert again.variables["params"]["gain"].shape == ()
    same_bits(again.variables, tree)


def test_attributes_may_be_overridden(tmp_path):
    compact.save(tmp_path, MODULE, extracted())
    assert compact.load(tmp_path, ConvNet, dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16


class Normed(nn.Module):
    """A network whose attributes are classes, of which only one is a dtype."""

    widths: FrozenDict
    norm: type = nn.BatchNorm
    other: type = nn.Module
    dtype: jnp.dtype = jnp.float32


def test_classes_are_no_dtypes(tmp_path):
    class Plain:
        dtype = jnp.float32

    assert compact._attributes(Normed(MODULE.widths)) == ({"dtype": {"dtype": "float32"}}, [])
    found = compact._attributes(Normed(MODULE.widths, norm=Plain, other=dict, dtype=float))
    assert found == ({"dtype": {"dtype": "float64"}}, ["norm", "other"])


def test_a_budget_of_another_network_is_refused():
    wide = budget.Budget((("a", 64, 2), ("b", 6, 3)))
    with pytest.raises(ValueError, match=r"budget is for widths .*64.* the network has .*4"):
        compact.extract(channel_map(MODULE), wide, variables(MODULE), SELECTION)


@pytest.mark.parametrize("file", ["weights.safetensors", "structure.json"])
def test_where_saving_fails_the_older_model_stays(tmp_path, monkeypatch, file):
    compact.save(tmp_path, MODULE, extracted())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = extracted()._replace(variables=jax.tree.map(jnp.negative, extracted().variables))

    def full_disk(path):
        if path.name == f"{file}.part":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(compact, "_sync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        compact.save(tmp_path, MODULE, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    same_bits(compact.load(tmp_path, ConvNet)[1].variables, extracted().variables)


def test_files_of_two_models_are_refused(tmp_path):
    other = extracted()._replace(variables=jax.tree.map(jnp.negative, extracted().variables))
    compact.save(tmp_path / "one", MODULE, extracted())
    compact.save(tmp_path / "two", MODULE, other)
    (tmp_path / "two/weights.safetensors").replace(tmp_path / "one/weights.safetensors")
    with pytest.raises(ValueError, match=r"damaged \(it is not the file that structure\.json was"):
        compact.load(tmp_path / "one", ConvNet)
    structure = json.loads((tmp_path / "one/structure.json").read_text())
    del structure["sha256"]  # as earlier versions wrote it
    (tmp_path / "one/structure.json").write_text(json.dumps(structure))
    same_bits(compact.load(tmp_path / "one", ConvNet)[1].variables, other.variables)


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def without_a_leaf(content):
    structure = json.loads(content)
    structure["leaves"].popitem()
    return json.dumps(structure).encode()


def without_widths(content):
    structure = json.loads(content)
    del structure["widths"], structure["leaves"]
    return json.dumps(structure).encode()


def fewer_channels(content):
    structure = json.loads(content)
    structure["channels"]["b"] = [1, 2]
    return json.dumps(structure).encode()


def a_flipped_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def another_format(content):
    return json.dumps({**json.loads(content), "format": 99}).encode()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("weights.safetensors", lambda b: b[: len(b) // 2], r"weights\.safetensors is damaged"),
        ("weights.safetensors", lambda _: b"", r"weights\.safetensors is damaged"),
        ("weights.safetensors", a_flipped_bit, r"weights\.safetensors is damaged \(it is not the"),
        (
            "structure.json",
            without_widths,
            r"damaged \(it lacks widths, leaves\)",
        ),
        (
            "structure.json",
            fewer_channels,
            r"damaged \(selection of 'b' must be",
        ),
        ("structure.json", lambda b: b[: len(b) // 2], r"structure\.json is damaged .* extract"),
        ("structure.json", lambda _: b"[]", r"structure\.json has format None"),
        ("structure.json", lambda _: b"\xff\xfe", r"structure\.json is damaged"),
        ("structure.json", another_format, r"has format 99, this version reads 1"),
        ("structure.json", without_a_leaf, r"does not hold the leaves that structure\.json names"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, file, change, message):
    compact.save(tmp_path, MODULE, extracted())
    damage(tmp_path / file, change)
    with pytest.raises(ValueError, match=message):
        compact.load(tmp_path, ConvNet)


def test_missing_files_and_another_class_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no compact model here: .*structure\.json is mis"):
        compact.load(tmp_path / "nowhere", ConvNet)
    compact.save(tmp_path, MODULE, extracted())
    with pytest.raises(ValueError, match="holds a ConvNet, not a ConcatNet: pass that class"):
        compact.load(tmp_path, ConcatNet)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights are missing: .*weights\.safetensors"):
        compact.load(tmp_path, ConvNet)


def test_saving_again_replaces_the_model(tmp_path):
    compact.save(tmp_path, MODULE, extracted())
    other = extracted()._replace(variables=jax.tree.map(jnp.negative, extracted().variables))
    compact.save(tmp_path, MODULE, other)
    same_bits(compact.load(tmp_path, ConvNet)[1].variables, other.variables)


# Recalibration.


def batches(count, scale=1.0, shift=0.0):
    return [batch(20 + i)["image"] * scale + shift for i in range(count)]


def layer_inputs(x):
    """What the first norm sees, in double precision."""
    kernel = np.asarray(variables(MODULE)["params"]["conv_a"]["kernel"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    windows = [
        np.einsum("bhwi,io->bhwo", padded[:, i : i + height, j : j + width], kernel[i, j])
        for i in range(3)
        for j in range(3)
    ]
    return sum(windows)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_recalibration_pools_the_exact_statistics_of_all_data(scale):
    # Far from unit scale, too: raw pixels reach a first layer with variances of 10,000.
    images = batches(3, scale)
    found = compact.recalibrate(MODULE, variables(MODULE), images)["batch_stats"]["norm_a"]
    seen = layer_inputs(np.concatenate(images))
    np.testing.assert_allclose(
        found["mean"], seen.mean(axis=(0, 1, 2)), rtol=1e-4, atol=scale * 1e-5
    )
    np.testing.assert_allclose(found["var"], seen.var(axis=(0, 1, 2)), rtol=1e-4)


def test_recalibration_on_one_batch_makes_inference_equal_training():
    (x,) = batches(1)
    tree = variables(MODULE)
    exact = compact.recalibrate(MODULE, tree, [x])
    assert exact["params"] is tree["params"]
    training, _ = compiled(MODULE, True)(*split(tree), x)
    inference, _ = compiled(MODULE, False)(*split(exact), x)
    before, _ = compiled(MODULE, False)(*split(tree), x)
    np.testing.assert_allclose(inference, training, rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(before - training)) > 1e-2


def test_recalibration_does_not_depend_on_the_old_statistics():
    tree, images = variables(MODULE), batches(2)
    odd = {**tree, "batch_stats": jax.tree.map(lambda s: s * 7 + 3, tree["batch_stats"])}
    same_bits(
        compact.recalibrate(MODULE, tree, images)["batch_stats"],
        compact.recalibrate(MODULE, odd, images)["batch_stats"],
    )


def test_recalibration_needs_batches_and_norms():
    with pytest.raises(ValueError, match="needs at least one batch of inputs, got none"):
        compact.recalibrate(MODULE, variables(MODULE), [])
    plain = variables(ConcatNet(), VECTORS)
    assert compact.recalibrate(ConcatNet(), plain, []) is plain
