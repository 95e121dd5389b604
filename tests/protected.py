"""Folders that a test may not write to, whoever runs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class _Capabilities(ctypes.Structure):
    """Linux' capabilities of a thread (capget(2), version 3): a header, and twice three masks of 32 bits."""

    _fields_ = [("version", ctypes.c_uint32), ("thread", ctypes.c_int), ("masks", ctypes.c_uint32 * 6)]


OVERRIDES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: permissions do not bind who has them."""


@contextlib.contextmanager
def write_protected(*folders: Path) -> Iterator[None]:
    """Folders in which this thread may change neither names nor files, root or not. Skips where the system has no such
    thing."""
    if os.name == "nt" or (os.geteuid() == 0 and not sys.platform.startswith("linux")):
        pytest.skip("permissions do not bind this user")
    libc, own = ctypes.CDLL(None), _Capabilities(0x20080522, 0)
    places = [place for folder in folders for place in (folder, *filter(Path.is_file, folder.iterdir()))]
    modes = [(place, stat.S_IMODE(place.stat().st_mode)) for place in places]
    masks = ctypes.byref(own, _Capabilities.masks.offset)
    root = os.geteuid() == 0 and not libc.capget(ctypes.byref(own), masks)
    before = own.masks[0]
    try:
        for place, mode in modes:
            place.chmod(mode & 0o555)
        if root:
            own.masks[0] = before & ~OVERRIDES
            assert not libc.capset(ctypes.byref(own), masks)
        yield
    finally:
        if root:
            own.masks[0] = before
            libc.capset(ctypes.byref(own), masks)
        for place, mode in modes:
            place.chmod(mode)
