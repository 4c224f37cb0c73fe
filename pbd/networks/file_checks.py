"""Check a foreign model file in a process of its own: `python -m pbd.networks.file_checks PATH FREE`.

All that libhdf5 may read of it later is read here first, with little memory and time: it believes the sizes in its own
tables. Damaged files of 50 kilobytes were seen to take four gigabytes, and to be read for ever.
"""

import collections
import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import h5py

from pbd.system import launcher

EXPANSION = 100
"""How many times the bytes that it takes in the file a part may hold when unpacked; weights hardly shrink by half."""
UNSUSPICIOUS = 64 * 2**20
"""Bytes that any part may hold when unpacked."""
SHARE_OF_MEMORY = 0.5
"""Of the host's free memory: what all weights may take."""
MOST_VALUES = 2**26
"""In any shape that a layer declares, batch aside."""
MOST_BESIDE = 256 * 2**20
"""Bytes of memory that reading may take beside the weights: for the configuration, for libhdf5's tables."""
MOST_BUSY_S, LEAST_SPEED = 3, 20e6
"""For how many seconds it may compute, and how many bytes of the file it must then read in one of them."""
REFUSED = 65


def check_apart(path: str, free: int) -> None:
    """Check a file in a process of its own.

    Args:
        free: bytes of memory.

    Raises:
        ValueError: it must not be loaded, for a reason of one line.
    """
    _kind(path)
    completed = subprocess.run(
        [sys.executable, "-P", "-m", __name__, path, str(free)],
        env=launcher.child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if completed.returncode == REFUSED:
        raise ValueError(completed.stdout.decode())
    if completed.returncode == -signal.SIGXCPU:
        raise ValueError("to read it takes longer than its size explains")
    if completed.returncode != 0:
        last_words = completed.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(" ".join([f"the process that checked it ended with code {completed.returncode}", *last_words]))


def main(path: str, free: int) -> int:
    """Check a file with at most so much memory; say in a line why it is refused, and return the exit code."""
    try:
        _limit_time(os.path.getsize(path))
        _limit_memory(0)
        check(path, free)
    except MemoryError:
        reason = f"to read it takes more than {MOST_BESIDE:,} bytes of memory beside its weights"
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        return 0
    sys.stdout.buffer.write(reason.encode(errors="backslashreplace"))
    return REFUSED


def check(path: str, free: int) -> None:
    """Check what a file says of itself, without believing it.

    Raises:
        ValueError: it is not an archive of Keras', nor HDF5, or declares what cannot be in it.
        MemoryError: it takes too much to find out.
    """
    if _kind(path) == "HDF5":
        with open(path, "rb") as file:
            _check_hdf5(file, free)
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _check_member(member, free)
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        for name in ("config.json", "model.weights.h5"):
            if name not in archive.namelist():
                raise ValueError(f"it has no {name}")
        _check_shapes(json.loads(archive.read("config.json")))
        weights, unpacked = archive.getinfo("model.weights.h5"), io.BytesIO()
        _limit_memory(weights.file_size * 9 // 8)  # a buffer that grows by an eighth at a time
        with archive.open(weights) as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
        _check_hdf5(unpacked, free)


def _kind(path: str) -> str:
    is_archive, is_hdf5 = zipfile.is_zipfile(path), h5py.is_hdf5(path)
    if is_archive == is_hdf5:  # what is both would be checked as the one and read as the other
        raise ValueError("it is empty, cut off, or of another format")
    return "HDF5" if is_hdf5 else "archive"


def _limit_time(size: int) -> None:
    """Have the system end this process when it has computed for longer than it takes to read so many bytes."""
    _limit(resource.RLIMIT_CPU, MOST_BUSY_S + int(size / LEAST_SPEED))
    _limit(resource.RLIMIT_CORE, 0)


def _limit_memory(needed: int) -> None:
    """Let this process take so many bytes more and a little beside, where the system says what it has (Linux)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, taken + needed + MOST_BESIDE)


def _limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    resource.setrlimit(what, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _check_member(member: zipfile.ZipInfo, free: int) -> None:
    place = PurePosixPath(member.filename.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{member.filename!r} lies outside of it")
    _check_size(member.filename, member.file_size, member.compress_size)
    _check_room(member.file_size, free)


def _check_size(name: str, unpacked: int, packed: int) -> None:
    if unpacked > max(UNSUSPICIOUS, EXPANSION * packed):
        raise ValueError(f"{name} would unpack to {unpacked:,} bytes from {packed:,}")


def _check_room(needed: int, free: int) -> None:
    if needed > SHARE_OF_MEMORY * free:
        raise ValueError(f"it would take {needed:,} bytes of memory, of which {free:,} are free")


def _check_hdf5(file: BinaryIO, free: int) -> None:
    with h5py.File(file, "r") as content:
        link = content.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
        if link is not None:
            raise ValueError(f"{link} is a link")
        things = _things(content)
        arrays = [thing for thing in things if isinstance(thing, h5py.Dataset)]
        for array in arrays:
            if array.external or array.is_virtual:
                raise ValueError(f"{array.name} is stored outside of it")
            _check_size(array.name, array.nbytes, array.id.get_storage_size())
        _check_room(sum(array.nbytes for array in arrays), free)
        for thing in (content, *things):
            collections.deque(thing.attrs.values(), maxlen=0)
        if "model_config" in content.attrs:
            _check_shapes(json.loads(content.attrs["model_config"]))
        _limit_memory(max((array.nbytes for array in arrays), default=0))
        for array in arrays:
            array[()]


def _things(content: h5py.File) -> list[h5py.Group | h5py.Dataset]:
    """Return all that is in a file, each of which must stand in one place."""
    objects = list[h5py.Group | h5py.Dataset]()

    def look(name: str, thing: h5py.Group | h5py.Dataset) -> str | None:
        objects.append(thing)
        return name if h5py.h5o.get_info(thing.id).rc > 1 else None

    shared = content.visititems(look)
    if shared is not None:
        raise ValueError(f"{shared} stands for several things")
    return objects


def _check_shapes(config: Any, name: str = "") -> None:
    """Check that no layer declares an enormous shape: some compute constants of their inputs' shape."""
    if isinstance(config, dict):
        for key, value in config.items():
            _check_shapes(value, key)
    elif isinstance(config, list):
        for value in config:
            _check_shapes(value, name)
        size = math.prod(max(1, abs(size)) for size in config if isinstance(size, int))
        if "shape" in name and size > MOST_VALUES:
            raise ValueError(f"a {name} of {size:,} values is declared")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
