"""What results say of where they were made."""

import jax

from experiments import huge_pages, machine


def test_facts_tell_device_processor_versions_and_tunables(monkeypatch):
    monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.hugetlb=1")
    found = machine.facts()
    assert list(found) == ["device", "processor", "versions", "tunables"]
    assert found["device"] == f"cpu ({machine.cores()} cores)"
    assert found["processor"] == machine.processor() != ""
    assert found["versions"]["jax"] == jax.__version__
    assert found["tunables"] == "glibc.malloc.hugetlb=1"


def test_without_tunables_facts_say_that_none_were_asked_for(monkeypatch):
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    assert machine.facts()["tunables"] == ""


def test_several_devices_are_counted():
    assert machine.facts(4)["device"] == f"4 x {machine.device()}"
