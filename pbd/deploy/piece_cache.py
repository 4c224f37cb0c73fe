"""The cache of measured pieces: one JSON file for each target, batch size, number of threads, CPU and versions."""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

import pbd
from pbd.deploy.targets import Target
from pbd.run_dir.atomic import write_atomically
from pbd.system import backend, devices, processor

METHOD = 3
"""Number of the way in which pieces are measured; raise it if figures of another way must not be mixed with these."""

_log = logging.getLogger(__name__)


def conditions(target: Target, batch: int, threads: int | None) -> dict[str, Any]:
    """Return what the seconds of a piece depend on besides the piece itself.

    Args:
        target: the target in which it runs.
        batch: images in a pass.
        threads: CPU threads; None if they are those of the process.
    """
    packages = target.runtime.packages + (target.quantizer.quantizing_packages if target.int8 else ())
    if "keras" in target.runtime.packages:
        packages += (backend.name(),)
    return {
        "method": METHOD,
        "target": target.name,
        "batch": batch,
        "threads": devices.process_threads() if threads is None else threads,
        "processor": processor.kind(),
        "devices": devices.names() if target.runtime.name.endswith("-gpu") else [],
        "versions": {"pbd": pbd.__version__} | {name: _version(name) for name in sorted({"keras", *packages})},
    }


class Seconds(NamedTuple):
    """Seconds that a piece adds to a forward pass."""

    warm_s: float
    """If its weights are in the caches of the CPU since the pass before."""
    cold_s: float
    """If its weights have to be read from memory."""


class PieceCache(Mapping[str, Seconds]):
    """Seconds of pieces by signature. What is added is written to the file at once, so nothing measured is lost."""

    def __init__(self, path: Path, under: dict[str, Any]) -> None:
        """Read the file, if there is one.

        Args:
            path: the path of the file.
            under: the conditions, which the file repeats.
        """
        self._path, self._under = path, under
        self._seconds = self._read()

    @classmethod
    def of(cls, target: Target, batch: int, threads: int | None, folder: Path | None = None) -> "PieceCache":
        """Return the cache for these conditions.

        Args:
            target: the target in which the pieces run.
            batch: images in a pass.
            threads: CPU threads; None if they are those of the process.
            folder: the folder of the files; by default a folder of the user's caches.
        """
        under = conditions(target, batch, threads)
        digest = hashlib.sha256(json.dumps(under, sort_keys=True).encode()).hexdigest()[:16]
        folder = folder or platformdirs.user_cache_path("pbd") / "latency"
        return cls(folder / f"{target.name}-batch{batch}-{digest}.json", under)

    def __getitem__(self, signature: str) -> Seconds:
        return self._seconds[signature]

    def update(self, measured: Mapping[str, Seconds]) -> None:
        """Add pieces, and write the file."""
        self._seconds = self._read() | self._seconds | dict(measured)  # another process may have written pieces too
        self._write()

    def __iter__(self) -> Iterator[str]:
        return iter(self._seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def _read(self) -> dict[str, Seconds]:
        """Return what the file holds; nothing if it is absent or damaged."""
        try:
            held = json.loads(self._path.read_bytes())["seconds"]
            return {signature: Seconds(float(warm_s), float(cold_s)) for signature, (warm_s, cold_s) in held.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the cached latencies %s cannot be used (%s) and are measured again.", self._path, error)
            return {}

    def _write(self) -> None:
        held = {"conditions": self._under, "seconds": self._seconds}
        try:
            write_atomically(self._path, json.dumps(held, indent=1).encode())
        except OSError as error:
            _log.warning("measured latencies cannot be cached for later runs: %s", error.strerror or error)


def _version(package: str) -> str:
    """Return the version of the distribution that contains a module; empty if it is unknown."""
    try:
        return importlib.metadata.version(package.split(".")[0])
    except importlib.metadata.PackageNotFoundError:  # the distribution has another name, as that of tensorflow-cpu
        return str(getattr(__import__(package.split(".")[0]), "__version__", ""))
