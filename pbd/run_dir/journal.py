"""The run directory: results are written to it atomically, and read when the run is resumed."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pbd.errors import CannotCreateError, CorruptStateError, MissingInputError
from pbd.records import BlockKey, BlockResult
from pbd.run_dir import lock
from pbd.run_dir.archive import json_digest, pack, plain, unpack
from pbd.run_dir.atomic import TEMPORARY, write_atomically

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
    settings_digest: str = ""
    """Digest of the settings that the blocks depend on. A block of other settings, which a worker of an earlier run in
    a directory of this name may write, is not read. Empty: of the settings that the directory holds."""

    @classmethod
    def create(cls, path: str | Path, identity: dict[str, Any], keys: Iterable[BlockKey] = ()) -> "Journal":
        """Start a run directory at `path`, parents included.

        Args:
            path: a directory that does not exist yet, is empty, or holds no more than a start that was killed leaves.
            identity: the settings that the results depend on; a resumed run must have the same.
            keys: the keys of the blocks that the run trains.

        Raises:
            CannotCreateError: `path` is a file, not writable, not empty, holds a run, or is not UTF-8.
        """
        journal = cls(Path(path), json_digest(identity))
        _check_name(journal.path)
        try:
            journal.path.mkdir(parents=True, exist_ok=True)
            _check_unused(journal.path)
            blocks = journal.file(_BLOCKS)
            is_left = blocks.is_dir()
            with lock.starting(journal.path):
                _check_unused(journal.path)  # again: another run may have started here meanwhile
                for stale in journal.path.glob(TEMPORARY):
                    stale.unlink()
                if is_left:
                    blocks.rmdir()
                # Only one process can create it: without the lock, all but one of those that start here at once fail.
                blocks.mkdir()
                content = {"format": FORMAT, "identity": identity, "blocks": [list(key) for key in keys]}
                journal.write_json(_RUN_FILE, content | {"sha256": json_digest(content)})
        except CannotCreateError:
            raise
        except OSError as error:
            raise _cannot_create(path, error.strerror or str(error)) from error
        return journal

    @classmethod
    def resume(cls, path: str | Path, identity: dict[str, Any], may_differ: Collection[str] = ()) -> "Journal":
        """Open the run directory at `path` to continue its run.

        Args:
            path: the path of the directory.
            identity: the settings that the results depend on.
            may_differ: the entries that need not be the same.

        Raises:
            MissingInputError: it holds no run.
            CannotCreateError: the directory cannot be written to, or its path is not UTF-8.
            CorruptStateError: its `run.json` is damaged, or `identity` is not the one it was created with.
        """
        _check_name(Path(path))
        before = cls(Path(path)).identity()
        journal = cls(Path(path), json_digest(before))
        if not os.access(journal.path, os.W_OK):
            raise CannotCreateError(f"cannot write to {path}. Make it writable, or start anew in another --run-dir.")
        now = json.loads(_dump_json(identity))
        differences = _differences(_without(before, may_differ), _without(now, may_differ))
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
            CannotCreateError: `resume` is false, and the directory is not empty or cannot be written; or its path is
                not UTF-8.
            MissingInputError: `resume` is true, and the directory holds no run or cannot be read.
        """
        target = Path(path).absolute()
        _check_name(target)
        if resume:
            cls(Path(path))._read_run_file()
            return
        existing = next(folder for folder in (target, *target.parents) if os.path.exists(folder))
        if os.path.isdir(existing) and not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            raise _cannot_create(path, f"{existing} is closed to this user")
        if not os.path.isdir(existing):
            raise _cannot_create(path, f"{existing} is not a folder")
        if target.is_dir():
            _check_unused(Path(path))

    def commit_block(self, result: BlockResult) -> None:
        """Write `result` durably: after this call it survives the end of the process and a power cut.

        Raises:
            TypeError: a weight is not a numeric array.
            CorruptStateError: the directory is gone, or holds another run by now.
            CannotWriteError: the disk is full, read-only or defective; no partial file is left.
            OSError: the directory cannot be written for another reason.
        """
        self._check_same_run()
        path = self.file(f"{_BLOCKS}/{block_file_name(result.key)}")
        write_atomically(path, _pack(result, self._settings()), parents=False)

    def committed_blocks(self) -> dict[BlockKey, BlockResult]:
        """Return the trained blocks; damaged files are logged and left out, so that their blocks are trained again."""
        settings = self._settings()
        results = [_read_block(path, settings) for path in sorted((self.path / _BLOCKS).glob("*.npz"))]
        return {result.key: result for result in results if result is not None}

    def committed_block(self, key: BlockKey) -> BlockResult | None:
        """Return the trained block with this key, `None` if it has not been written or is damaged."""
        path = self.path / _BLOCKS / block_file_name(key)
        return _read_block(path, self._settings()) if path.exists() else None

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

    def remove_temporary_files(self) -> None:
        """Remove what writers that were killed left, in all folders; only while this process holds the lock.

        A worker of an earlier run, whose coordinator was killed, may be writing a block: the worker then fails, and the
        block is trained again. Young files are not spared, since a run is often resumed at once.
        """
        for stale in self.path.rglob(TEMPORARY):
            with contextlib.suppress(OSError):  # a file in the way is no reason to end a run
                stale.unlink()

    def _settings(self) -> str:
        """Return the digest of the settings that the blocks depend on; empty in a folder that is no run directory."""
        if self.settings_digest or not os.path.isfile(self.file(_RUN_FILE)):
            return self.settings_digest
        return json_digest(self.identity())

    def _check_same_run(self) -> None:
        gone = not self.path.is_dir()
        begun = bool(self.settings_digest) and os.path.isfile(self.file(_RUN_FILE))
        if gone or (begun and json_digest(self.identity()) != self.settings_digest):
            raise CorruptStateError(
                f"a block is written only to the directory of its run. Received: {self.path}, which "
                f"{'is gone' if gone else 'holds another run by now'}. End the workers of the earlier run, or mount "
                "the storage again."
            )

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
        except (ValueError, KeyError, TypeError, RecursionError) as error:
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


def _check_name(path: Path) -> None:
    """Refuse a path that is not UTF-8: reports and costs hold it as text."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise CannotCreateError(
            f"the path of a run directory must be UTF-8. Received: {os.fsencode(path.absolute())!r}. "
            "Give another --run-dir."
        ) from error


def _check_unused(path: Path) -> None:
    """Refuse a directory that holds more than a start that was killed leaves: an empty `blocks`, temporary files."""
    entries = sorted(entry.name for entry in path.iterdir() if not entry.match(TEMPORARY))
    if _RUN_FILE in entries:
        raise CannotCreateError(f"{path} already holds a run. Add --resume, or give another --run-dir.")
    blocks = path / _BLOCKS
    if entries and not (entries == [_BLOCKS] and blocks.is_dir() and not any(blocks.iterdir())):
        raise CannotCreateError(
            f"a run directory must be new or empty. Received: {path} (holds {entries[0]}). Give another --run-dir."
        )


def _read_block(path: Path, settings_digest: str) -> BlockResult | None:
    """Return the trained block in a file; `None` if it is damaged or of other settings."""
    try:
        result, of_settings = _unpack(path.read_bytes())
        if block_file_name(result.key) != path.name:
            raise ValueError(f"it holds block {str(result.key)!r}")
        if of_settings not in (None, settings_digest):
            raise ValueError("it is a block of a run with other settings")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _log.warning("%s is not used (%s): its layer will be trained again.", path, error)
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


def _without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


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


def _pack(result: BlockResult, settings_digest: str) -> bytes:
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "weights"}
    description = {"settings": settings_digest, "fields": fields, "weights": list(result.weights)}
    return pack(description, list(result.weights.values()))


def _unpack(data: bytes) -> tuple[BlockResult, str | None]:
    """Return a block and the digest of the settings of its run; None for a block of an earlier version of pbd."""
    content, arrays = unpack(data)
    fields = content["fields"] | {name: tuple(content["fields"][name]) for name in ("loss_history", "nmse_history")}
    result = BlockResult(**fields, weights=dict(zip(content["weights"], arrays, strict=True)))
    return result, content.get("settings")
