"""What writes a checkpoint, held back or refusing."""

import errno
import threading

import pytest

from experiments import checkpoint


@pytest.fixture
def gate(monkeypatch):
    """Orbax's writer, which waits until it is let go."""
    opened, begun, save = threading.Event(), threading.Event(), checkpoint.ocp.save

    def slow(*args):
        begun.set()
        assert opened.wait(60)
        return save(*args)

    monkeypatch.setattr(checkpoint.ocp, "save", slow)
    yield opened, begun
    opened.set()


def fails():
    raise OSError(errno.ENOSPC, "No space left on device")
