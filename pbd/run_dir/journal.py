"""The run directory: results are written to it atomically, and read when the run is resumed."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from pbd.errors import CannotCreateError, CorruptStateError, MissingInputError
from pbd.records import BlockKey, BlockResult
from pbd.run_dir.archive import json_digest, pack, plain, unpack

FORMAT = 6
_RUN_FILE = "run.json"
_BLOCKS = "blocks"
_MAX_NAME = 180  # bytes; file systems allow 255, and suffix and digest take the rest
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Journal:
    """A run directory. Picklable; several processes may use it at once, because each file has one writer.

    Example:
        >>> journal = Journal.create("runs/first", config.block_settings())
        >>> journal.commit_block(result)
        >>> sorted(Journal.resume("runs/first", config.block_settings()).committed_blocks())
        [BlockKey(layer='conv2d', design='decoupled_r2')]
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path, identity: dict[str, Any], keys: Iterable[BlockKey] = ()) -> "Journal":
        """Start a run directory at `path`, parents included.

        Args:
            path: a directory that does not exist yet, or is empty.
            identity: the settings that the results depend on; a resumed run must have the same.
            keys: of the blocks that the run trains.

        Raises:
            CannotCreateError: `path` is a file, not writable, not empty, or holds a run.
        """
        journal = cls(Path(path))
        try:
            journal.path.mkdir(parents=True, exist_ok=True)
            entries = sorted(entry.name for entry in journal.path.iterdir())
            if not entries:
                # Only one process can create this folder: if two runs start here at once, one of them fails.
                (journal.path / _BLOCKS).mkdir()
                content = {"format": FORMAT, "identity": identity, "blocks": [list(key) for key in keys]}
                journal.write_json(_RUN_FILE, content | {"sha256": json_digest(content)})
                return journal
        except OSError as error:
            raise _cannot_create(path, error.strerror or str(error)) from error
        if _RUN_FILE in entries:
            raise CannotCreateError(f"{path} already holds a run. Add --resume, or give another --run-dir.")
        raise CannotCreateError(
            f"a run directory must be new or empty. Received: {path} (holds {entries[0]}). Give another --run-dir."
        )

    @classmethod
    def resume(cls, path: str | Path, identity: dict[str, Any]) -> "Journal":
        """Open the run directory at `path` to continue its run.

        Raises:
            MissingInputError: it holds no run.
            CannotCreateError: the directory cannot be written to.
            CorruptStateError: its `run.json` is damaged, or `identity` is not the one it was created with.
        """
        journal = cls(Path(path))
        before = journal._read_run_file()["identity"]
        if not os.access(journal.path, os.W_OK):
            raise CannotCreateError(f"cannot write to {path}. Make it writable, or start anew in another --run-dir.")
        differences = _differences(before, json.loads(_dump_json(identity)))
        if differences:
            raise CorruptStateError(
                f"{path} holds a run with other settings: {'; '.join(differences)}. "
                "Resume with the old settings, or give another --run-dir without --resume."
            )
        return journal

    @classmethod
    def check(cls, path: str | Path, resume: bool) -> None:
        """Check whether `create` or `resume` can succeed, before any work is done.

        Raises:
            CannotCreateError: `resume` is false, and the directory is not empty or cannot be written.
            MissingInputError: `resume` is true, and the directory holds no run or cannot be read.
        """
        target = Path(path).absolute()
        if resume:
            cls(Path(path))._read_run_file()
            return
        existing = next(folder for folder in (target, *target.parents) if os.path.exists(folder))
        if os.path.isdir(existing) and not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            raise _cannot_create(path, f"{existing} is closed to this user")
        if not os.path.isdir(existing) or (target.is_dir() and any(target.iterdir())):
            cls.create(path, {})  # raises, with the reason

    def commit_block(self, result: BlockResult) -> None:
        """Write `result` durably: after this call it survives the end of the process and a power cut.

        Raises:
            TypeError: a weight is not a numeric array.
            OSError: the directory cannot be written, for example because the disk is full; no partial file is left.
        """
        self.write_bytes(f"{_BLOCKS}/{block_file_name(result.key)}", _pack(result))

    def committed_blocks(self) -> dict[BlockKey, BlockResult]:
        """Return the trained blocks; damaged files are logged and left out, so that their blocks are trained again."""
        results = map(_read_block, sorted((self.path / _BLOCKS).glob("*.npz")))
        return {result.key: result for result in results if result is not None}

    def committed_block(self, key: BlockKey) -> BlockResult | None:
        """Return the trained block with this key, None if it has not been written or is damaged."""
        path = self.path / _BLOCKS / block_file_name(key)
        return _read_block(path) if path.exists() else None

    def keys(self) -> tuple[BlockKey, ...]:
        """Return the keys of the blocks that the run trains.

        Raises:
            MissingInputError: the directory holds no run.
            CorruptStateError: its `run.json` is damaged.
        """
        return tuple(BlockKey(*key) for key in self._read_run_file()["blocks"])

    def identity(self) -> dict[str, Any]:
        """Return the settings that the results depend on, with which the run was started.

        Raises:
            MissingInputError: the directory holds no run.
            CorruptStateError: its `run.json` is damaged.
        """
        return dict(self._read_run_file()["identity"])

    def file(self, name: str) -> Path:
        """Return the path of `name` in the run directory."""
        return self.path / name

    def last_written(self, folder: str, suffix: str) -> dict[str, int]:
        """Return the modification time of each file in a folder of the run directory, in nanoseconds."""
        return {path.name: path.stat().st_mtime_ns for path in self.file(folder).glob(f"*{suffix}")}

    def write_json(self, name: str, obj: Any) -> Path:
        """Write `obj` as JSON, atomically.

        Raises:
            ValueError: it holds NaN or infinity, which JSON does not have.
        """
        return self.write_bytes(name, _dump_json(obj))

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file of the run directory atomically, and return its path."""
        return write_atomically(self.file(name), data)

    def remove_folder(self, name: str) -> None:
        """Remove a folder of the run directory, if it exists."""
        shutil.rmtree(self.file(name), ignore_errors=True)

    def _read_run_file(self) -> dict[str, Any]:
        run_file = self.file(_RUN_FILE)
        try:
            content = dict(json.loads(run_file.read_bytes()))
            version, digest = content["format"], content.pop("sha256", "")
        except PermissionError as error:
            raise MissingInputError(
                f"a run directory must be readable. Received: {run_file}: {error.strerror}. Check its permissions, and "
                "those of the folders above it."
            ) from error
        except OSError as error:
            raise MissingInputError(
                f"there is no run in {self.path}. Check the path; a new run is started without --resume."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStateError(f"{run_file} is damaged. Start anew in another --run-dir.") from error
        if version != FORMAT:
            raise CorruptStateError(
                f"{run_file} must have format {FORMAT}. Received: {version}. Resume with the pbd that wrote it, "
                "or start anew in another --run-dir."
            )
        if digest != json_digest(content):
            raise CorruptStateError(f"{run_file} is damaged. Start anew in another --run-dir.")
        return content


def _cannot_create(path: str | Path, reason: str) -> CannotCreateError:
    return CannotCreateError(f"cannot create {path}: {reason}. Give another --run-dir.")


def write_atomically(target: Path, data: bytes) -> Path:
    """Write `data` to `target` atomically: even if the process dies, the file has its old content or all of the new."""
    with open_atomically(target) as stream:
        stream.write(data)
    return target


@contextlib.contextmanager
def open_atomically(target: Path) -> Iterator[BinaryIO]:
    """Open `target` for writing; it keeps its old content until the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _read_block(path: Path) -> BlockResult | None:
    try:
        result = _unpack(path.read_bytes())
        if block_file_name(result.key) != path.name:
            raise ValueError(f"it holds block {str(result.key)!r}")
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged (%s): its layer will be trained again.", path, error)
        return None
    return result if result.status == "trained" else None


def block_file_name(key: BlockKey) -> str:
    """Return the file name of a block: layer@design, percent-encoded, shortened with a digest if it is too long.

    Example:
        >>> block_file_name(BlockKey("stage 1/conv", "two_layer"))
        'stage%201%2Fconv@two_layer.npz'
    """
    safe = quote(str(key), safe="@")
    if len(safe) > _MAX_NAME:
        safe = f"{safe[:100]}-{hashlib.sha256(str(key).encode()).hexdigest()}"
    return f"{safe}.npz"


def _dump_json(obj: Any) -> bytes:
    return json.dumps(obj, indent=2, allow_nan=False, default=plain, ensure_ascii=False).encode()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it; the file itself is synced
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return a phrase for each setting whose value differs; nested settings have dotted names."""
    phrases: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            phrases += _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            phrases.append(f"{prefix}{name} was {before!r} and is {now!r} now")
    return phrases


def _pack(result: BlockResult) -> bytes:
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "weights"}
    return pack({"fields": fields, "weights": list(result.weights)}, list(result.weights.values()))


def _unpack(data: bytes) -> BlockResult:
    content, arrays = unpack(data)
    fields = content["fields"] | {name: tuple(content["fields"][name]) for name in ("loss_history", "nmse_history")}
    return BlockResult(**fields, weights=dict(zip(content["weights"], arrays, strict=True)))
