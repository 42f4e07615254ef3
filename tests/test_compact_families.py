"""Compact models of every family of networks, through files and back."""

import numpy as np
import pytest
from families import TINY, data, example, quick_jit, random_budget, random_selection
from nets import channel_map, same_bits, variables

from dce_jax import channels, compact, masks


@pytest.mark.parametrize("family", TINY)
def test_a_cut_model_comes_back_and_answers_as_the_full_one_without_the_rest(tmp_path, family):
    full, bud = TINY[family], random_budget(family, seed=0)
    mapped, whole = channel_map(full, example(family)), variables(full, example(family))
    selection = random_selection(bud, seed=0)
    model = compact.extract(mapped, bud, whole, selection)
    compact.save(tmp_path, full, model)
    module, loaded = compact.load(tmp_path, type(full))
    assert module == channels.with_widths(full, bud.compact)
    assert loaded.budget == bud
    same_bits(loaded.variables, model.variables)
    same_bits(loaded.selection, model.selection)

    @quick_jit
    def logits(cut, whole, seen, x):
        names = {name: mapped.names(name, tree) for name, tree in whole.items()}
        unread = {name: masks.unread(tree, names[name], seen) for name, tree in whole.items()}
        return module.apply(cut, x), full.apply(unread, x)

    x, every = data(family)["image"], masks.of({}, bud.full)
    found, expected = logits(loaded.variables, whole, masks.of(selection, bud.full), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(found - logits(loaded.variables, whole, every, x)[1])) > 1e-2
