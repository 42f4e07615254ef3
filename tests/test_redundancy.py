"""Effective rank: known cases, and the table made of it."""

import json

import numpy as np
import pytest
import report_fixture as fixture
from hypothesis import given
from hypothesis import strategies as st

from experiments import redundancy, tables


def kernel(rows):
    """A kernel [1, 1, D, K] whose channels are the rows."""
    return np.asarray(rows, np.float32).T[None, None]


def test_orthogonal_channels_count_all_and_parallel_ones_once():
    assert redundancy.effective_rank([kernel(np.eye(4))]) == pytest.approx(4)
    assert redundancy.effective_rank([kernel([[1, 2], [2, 4], [-3, -6]])]) == pytest.approx(1)
    assert redundancy.effective_rank([kernel([[1, 0], [1, 0], [0, 1], [0, 1]])]) == pytest.approx(2)
    assert redundancy.effective_rank([kernel(np.zeros((3, 2)))]) == 0.0


def test_kernels_of_one_group_count_together():
    same, apart = kernel([[1.0, 0.0], [1.0, 0.0]]), kernel([[1.0, 0.0], [0.0, 1.0]])
    assert redundancy.effective_rank([same]) == pytest.approx(1)
    # cosine 1/2 between the joined rows: eigenvalues 3/4 and 1/4 of the whole
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert redundancy.effective_rank([same, apart]) == pytest.approx(expected)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_it_lies_within_its_bounds_and_ignores_lengths(channels, inputs, seed):
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(channels, inputs))
    found = redundancy.effective_rank([kernel(rows)])
    assert 1 - 1e-6 <= found <= min(channels, inputs) + 1e-6
    longer = rows * draw.uniform(0.5, 2.0, (channels, 1))
    assert redundancy.effective_rank([kernel(longer)]) == pytest.approx(found, rel=1e-4)


def test_shares_are_of_the_channels():
    params = {"a": {"kernel": kernel(np.eye(4))}, "b": {"kernel": kernel([[1, 1], [1, 1]])}}
    paths = {"a": (("a", "kernel"),), "b": (("b", "kernel"),)}
    found = redundancy.shares(params, paths)
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(0.5)}


def test_the_table_has_a_column_a_group(tmp_path):
    for seed, rank in ((0, 0.5), (1, 0.75)):
        made = fixture.result(seed=seed, effective_rank={"conv1": rank, "conv2": 1.0})
        (tmp_path / f"{seed}.json").write_text(json.dumps(made))
    document = tmp_path / "page.md"
    document.write_text("<!-- ranks:all . -->\n<!-- /ranks:all -->\n")
    assert tables.main(["--readme", str(document)]) == 0
    assert "| dce | - | 0.62 | 1.00 | 96.50 ± 0.71 % (2) |" in document.read_text()


def test_results_without_ranks_are_refused(tmp_path, capsys):
    (tmp_path / "old.json").write_text(json.dumps(fixture.result()))
    document = tmp_path / "page.md"
    document.write_text("<!-- ranks:all . -->\n<!-- /ranks:all -->\n")
    assert tables.main(["--readme", str(document)]) == 2
    assert "a result of dce seed 0 holds no effective ranks" in capsys.readouterr().err
