"""Huge pages for processes that compute on a CPU.

XLA takes the temporaries of every step from the C library and gives them back after it. In pages of
4 KiB the system clears and maps each of them anew, step by step; in huge pages of 2 MiB that is
next to nothing (docs/hardware.md). glibc asks for them where an environment variable says so when
a process starts; other C libraries do not read it, and a system without huge pages gives small
ones.
"""

import os
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"


def environment(own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``own``, with huge pages asked for, unless it says already what it wants of them.

    Args:
      own: environment variables of a process.
    """
    asked = own.get(VARIABLE, "")
    if TUNABLE in asked:
        return dict(own)
    return {**own, VARIABLE: ":".join(filter(None, (asked, f"{TUNABLE}=1")))}


def tunables() -> str:
    """What this process asks of its C library, as results store it; nothing: ``""``."""
    return os.environ.get(VARIABLE, "")
