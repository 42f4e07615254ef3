"""The main job on several devices: as on one, restored on any number, refused where it cannot be."""

import numpy as np
import pytest
import runs

MANY = {"devices": 8, "select_every": 2, "commit": 0.5, "block": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with runs.lab(tmp_path_factory.mktemp("devices")) as opened:
        yield opened


def close_end(one, other):
    """Asserts that two workdirs chose alike and ended with close numbers."""
    first, second = runs.arrays_of(one), runs.arrays_of(other)
    assert first.keys() == second.keys()
    for name in first:
        shape, dtype, values = first[name]
        assert second[name][:2] == (shape, dtype)
        a, b = (np.frombuffer(each, dtype) for each in (values, second[name][2]))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4, err_msg=name)
    assert runs.chosen(one) == runs.chosen(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"sharding": "replicated"},
        {"sharding": "sharded"},
        {"sharding": "sharded", "select_every": 1, "method": "random", "commit": 1.0},
        {"sharding": "sharded", "method": "dense"},
    ],
)
def test_eight_devices_end_where_one_does(lab, changes):
    changes = {**MANY, **changes}
    found, many = lab.run(**changes)
    _, one = lab.run(**{**changes, "devices": 1, "sharding": "replicated"})
    close_end(one, many)
    assert found["device"].startswith("8 x cpu")
