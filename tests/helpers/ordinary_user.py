"""For tests of permissions: under root, the permissions of files hold for this thread as for an ordinary user."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

_CAPABILITY_VERSION = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root may read and write everything."""
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 27, 28, 1 << 2
"""With this bit access(2) does not take the capabilities of root into account, either."""


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Let no capability of root override the permissions of files, until the block ends; see capabilities(7)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    bits = libc.prctl(_PR_GET_SECUREBITS)
    if libc.capget(header, sets) or libc.prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP):
        pytest.skip("root may not give up its capabilities here")
    effective = sets[0]
    sets[0] = effective & ~_OVERRIDES
    try:
        assert libc.capset(header, sets) == 0
        yield
    finally:
        sets[0] = effective
        libc.capset(header, sets)
        libc.prctl(_PR_SET_SECUREBITS, bits)
