"""A network that is small enough to compile all forms of per-input execution."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flax.core import FrozenDict

from dce_jax import networks
from experiments.latency_subject import Subject, untrained


def tiny(**_) -> networks.VGG:
    widths = FrozenDict(conv0=2, conv1=16, conv2=16)
    return networks.VGG(depths=(1, 2), widths=widths, num_classes=10)


@contextmanager
def named() -> Iterator[None]:
    """The network can be asked for by name: two sites of 16 channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny", tiny)
        yield


def subject(*, parts: int, images: int, name: str = "rnp") -> Subject:
    with named():
        return untrained("tiny", width=1.0, name=name, parts=parts, images=images)
