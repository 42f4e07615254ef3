"""Runs of a sweep ask for huge pages, unless they are told otherwise, and results say so."""

import sys

import pytest

from experiments import huge_pages, workers


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"},
            "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1",
        ),
    ],
)
def test_they_are_asked_for_unless_somebody_decided(own, expected):
    found = huge_pages.environment({"PATH": "/bin", **own})
    assert found == {"PATH": "/bin", "GLIBC_TUNABLES": expected}


@pytest.mark.parametrize("told", [None, "glibc.malloc.hugetlb=0"])
def test_jobs_of_a_sweep_get_them(tmp_path, monkeypatch, told):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if told:
        monkeypatch.setenv("GLIBC_TUNABLES", told)
    code = "from experiments import huge_pages; print(huge_pages.tunables())"
    job = workers.Job("one", (sys.executable, "-c", code), tmp_path / "log", tmp_path)
    assert not workers.run([job], count=1, finished=lambda _: None).failed
    assert job.log.read_text() == f"{told or 'glibc.malloc.hugetlb=1'}\n"
    assert huge_pages.tunables() == (told or "")  # its own process stays as it is
