"""Checks of foreign model files, in a process with limits: `python -m pbd.networks.file_checks PATH FREE_BYTES`.

libhdf5 trusts the sizes declared in a file: reading damaged files of 50 kilobytes took four gigabytes or never ended.
All data that is read later is therefore read here first, with limits on memory and time.
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
"""Largest ratio of unpacked to packed bytes of a part of a file; weights hardly compress to half their size."""
ALWAYS_ALLOWED = 64 * 2**20
"""Unpacked bytes up to which the ratio does not matter."""
SHARE_OF_MEMORY = 0.5
"""Largest share of the host's free memory for all weights."""
MOST_VALUES = 2**26
"""Largest number of values in a shape that a layer declares, without the batch."""
MEMORY_OVERHEAD = 256 * 2**20
"""Bytes of memory for reading beside the weights: the configuration and libhdf5's tables."""
BASE_CPU_S, LEAST_BYTES_PER_S = 3, 20e6
"""Seconds of CPU time for any file, and the least speed of reading that allows more time for a larger one."""
REFUSED = 65
"""Exit code if the file must not be loaded; the reason is on standard output."""


def check_apart(path: str, free: int) -> None:
    """Check a file in a process of its own.

    Args:
        path: the path of the file.
        free: bytes of free memory on this host.

    Raises:
        ValueError: the file must not be loaded; the reason is one line.
    """
    _kind(path)
    checker = subprocess.run(
        [sys.executable, "-P", "-m", __name__, path, str(free)],
        env=launcher.child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if checker.returncode == REFUSED:
        raise ValueError(checker.stdout.decode())
    if checker.returncode == -signal.SIGXCPU:
        raise ValueError("reading it takes longer than its size explains")
    if checker.returncode != 0:
        last_line = checker.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(" ".join([f"the process that checks it ended with code {checker.returncode}", *last_line]))


def main(path: str, free: int) -> int:
    """Check a file under limits of memory and time, print the reason if it is refused, and return the exit code.

    Args:
        path: the path of the file.
        free: bytes of free memory on this host.
    """
    try:
        _limit_time(os.path.getsize(path))
        _limit_memory(0)
        check(path, free)
    except MemoryError:
        reason = f"reading it takes more than {MEMORY_OVERHEAD:,} bytes of memory beside its weights"
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        return 0
    sys.stdout.buffer.write(reason.encode(errors="backslashreplace"))
    return REFUSED


def check(path: str, free: int) -> None:
    """Check that the declarations in a file agree with its size and content.

    Raises:
        ValueError: the file is neither an archive of Keras nor HDF5, or it declares more than it contains.
        MemoryError: reading it takes more memory than its size explains.
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
        _limit_memory(weights.file_size * 9 // 8)  # BytesIO grows by an eighth at a time
        with archive.open(weights) as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
        _check_hdf5(unpacked, free)


def _kind(path: str) -> str:
    """Return whether the file is an archive or HDF5; a file that is both would be checked as one, read as the other."""
    is_archive, is_hdf5 = zipfile.is_zipfile(path), h5py.is_hdf5(path)
    if is_archive == is_hdf5:
        raise ValueError("it is empty, cut off, or of another format")
    return "HDF5" if is_hdf5 else "archive"


def _limit_time(size: int) -> None:
    """Let the system kill this process if it takes more CPU time than reading `size` bytes needs."""
    _limit(resource.RLIMIT_CPU, BASE_CPU_S + int(size / LEAST_BYTES_PER_S))
    _limit(resource.RLIMIT_CORE, 0)


def _limit_memory(needed: int) -> None:
    """Limit this process to its present memory, `needed` bytes and the overhead; only Linux reports the first."""
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        in_use = int(statistics.read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, in_use + needed + MEMORY_OVERHEAD)


def _limit(kind: int, limit: int) -> None:
    """Set a soft limit of this process, at most its hard limit."""
    _, hard_limit = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit), hard_limit))


def _check_member(member: zipfile.ZipInfo, free: int) -> None:
    target = PurePosixPath(member.filename.replace("\\", "/"))
    if target.is_absolute() or ".." in target.parts:
        raise ValueError(f"{member.filename!r} lies outside of it")
    _check_size(member.filename, member.file_size, member.compress_size)
    _check_memory(member.file_size, free)


def _check_size(name: str, unpacked: int, packed: int) -> None:
    if unpacked > max(ALWAYS_ALLOWED, EXPANSION * packed):
        raise ValueError(f"{name} would unpack to {unpacked:,} bytes from {packed:,}")


def _check_memory(needed: int, free: int) -> None:
    if needed > SHARE_OF_MEMORY * free:
        raise ValueError(f"it needs {needed:,} bytes, more than {SHARE_OF_MEMORY:.0%} of the {free:,} that are free")


def _check_hdf5(file: BinaryIO, free: int) -> None:
    with h5py.File(file, "r") as content:
        link = content.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
        if link is not None:
            raise ValueError(f"{link} is a link")
        objects = _objects(content)
        arrays = [entry for entry in objects if isinstance(entry, h5py.Dataset)]
        for array in arrays:
            if array.external or array.is_virtual:
                raise ValueError(f"{array.name} is stored outside of it")
            _check_size(array.name, array.nbytes, array.id.get_storage_size())
        _check_memory(sum(array.nbytes for array in arrays), free)
        for entry in (content, *objects):
            collections.deque(entry.attrs.values(), maxlen=0)  # reads every attribute and keeps none
        if "model_config" in content.attrs:
            _check_shapes(json.loads(content.attrs["model_config"]))
        _limit_memory(max((array.nbytes for array in arrays), default=0))
        for array in arrays:
            array[()]  # reads and unpacks every value


def _objects(content: h5py.File) -> list[h5py.Group | h5py.Dataset]:
    """Return all groups and arrays of a file, each of which must have one name only.

    A small file with many names for one large array would pass every check of single sizes.
    """
    objects = list[h5py.Group | h5py.Dataset]()

    def visit(name: str, entry: h5py.Group | h5py.Dataset) -> str | None:
        objects.append(entry)
        return name if h5py.h5o.get_info(entry.id).rc > 1 else None

    shared = content.visititems(visit)
    if shared is not None:
        raise ValueError(f"{shared} has several names")
    return objects


def _check_shapes(config: Any, name: str = "") -> None:
    """Check that no layer declares an enormous shape: some compute constants of that shape when they are built."""
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
