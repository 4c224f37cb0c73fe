"""The folders of each split of a data set, whatever the spelling; layouts with two readings are refused."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pbd.data.split_names import Role, split_role
from pbd.errors import BadInputError, MissingInputError
from pbd.system import watchdog

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
UNREAD_SUFFIXES = (".webp", ".tif", ".tiff", ".jfif", ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm")
"""Suffixes of image files that no backend reads, or not by this name."""
CLASS_WORDS = ("train", "valid")
"""Names of splits that are names of classes too (vehicles; valid and invalid)."""


@dataclass(frozen=True)
class SplitFolders:
    """The folder of each split; `None` for splits that are missing."""

    train: Path
    validation: Path | None = None
    test: Path | None = None

    @property
    def present(self) -> list[Path]:
        return [folder for folder in (self.train, self.validation, self.test) if folder is not None]


def split_folders(folder: Path) -> SplitFolders:
    """Return the folders of the splits; if there are none, all images are training images.

    Raises:
        BadInputError: two folders stand for one split, the training images are missing, or folders of splits and
            of classes lie side by side.
        MissingInputError: a folder cannot be read.
    """
    names = subfolders(folder)
    spellings: dict[Role, list[str]] = {}
    for name in names:
        if (role := split_role(name)) is not None:
            spellings.setdefault(role, []).append(name)
    if not spellings or _are_classes(folder, names, spellings):
        return SplitFolders(folder)
    for role, same in spellings.items():
        if len(same) > 1:
            raise BadInputError(
                f"one folder must hold the {role} images. Received: {same[0]!r} and {same[1]!r} in {str(folder)!r}. "
                "Merge the two, or move one of them out of the folder."
            )
    if "train" not in spellings:
        name = next(iter(spellings.values()))[0]
        raise BadInputError(
            f"a folder of test or validation images needs train/ beside it. Received: {name!r} in {str(folder)!r}. "
            f"Add train/, or give {str(folder / name)!r} to use its images only."
        )
    parts = {role: folder / name for role, (name,) in spellings.items()}
    if "test" not in parts:
        return SplitFolders(parts["train"], None, parts.get("validation"))
    return SplitFolders(parts["train"], parts.get("validation"), parts["test"])


def _are_classes(folder: Path, names: list[str], spellings: dict[Role, list[str]]) -> bool:
    """Return whether the folders are classes although one of them has the name of a split.

    Raises:
        BadInputError: they may be classes, splits, or splits and an unknown folder.
    """
    splits = [name for same in spellings.values() for name in same]
    others = [name for name in names if name not in splits and _holds_images(folder / name)]
    nested = [name for name in splits if subfolders(folder / name)]
    if not others:
        return False
    if len(splits) == 1 and splits[0].casefold() in CLASS_WORDS and not nested:
        return True
    classes = {inner for name in nested for inner in subfolders(folder / name)}
    similar = [name for name in others if classes & set(subfolders(folder / name))]
    if "train" in spellings and len(spellings) > 1 and nested and not similar:
        return False  # as with train/, test/ and unlabelled/
    split, other = splits[0], (similar or others)[0]
    way_out = (
        f"name {other!r} after its split (validation or test), or move it out of the folder"
        if "train" in spellings
        else "move the class folders into train/"
    )
    raise BadInputError(
        f"a dataset folder has folders of classes or of splits, not both. Received: {split!r}, the name of a split, "
        f"beside {other!r} in {str(folder)!r}. Rename {split!r} to {'class ' + split!r} if it is a class; "
        f"otherwise {way_out}."
    )


def visible(folder: Path) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder that are not hidden, sorted by name.

    Raises:
        MissingInputError: the folder cannot be read.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(entries, key=lambda entry: entry.name)


def _unreadable(folder: str | Path, error: OSError) -> MissingInputError:
    return MissingInputError(
        f"a dataset folder must be readable. Received: {str(folder)!r}: {error.strerror}. Check its permissions."
    )


def subfolders(folder: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted."""
    return [entry.name for entry in visible(folder) if entry.is_dir()]


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def image_files(folder: Path, unread: list[str] | None = None) -> Iterator[str]:
    """Yield the image files at any depth under a folder, without hidden files and folders.

    Links are followed, since class folders often are links; but no folder twice, since links may form a circle, and
    none that contains this folder, whose other folders are other classes.

    Args:
        folder: the folder to search.
        unread: receives the image files that are left out, since their suffix is one of `UNREAD_SUFFIXES`.

    Raises:
        MissingInputError: a folder cannot be read.
        BadInputError: a name is not UTF-8.
    """

    def refuse(error: OSError) -> NoReturn:
        raise _unreadable(error.filename, error) from error

    visited = set(map(str, Path(os.path.realpath(folder)).parents))
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        watchdog.touch()
        target = os.path.realpath(parent)
        new = target not in visited
        visited.add(target)
        folders[:] = sorted(name for name in folders if new and not name.startswith("."))
        for name in files if new else ():
            if is_image(name):
                yield _checked(os.path.join(parent, name))
            elif unread is not None and name.lower().endswith(UNREAD_SUFFIXES) and not name.startswith("."):
                unread.append(os.path.join(parent, name))


def _checked(path: str) -> str:
    """Return the path of an image.

    Raises:
        BadInputError: its name is not UTF-8, which TensorFlow and reports need.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadInputError(
            f"names of folders and image files must be UTF-8. Received: {os.fsencode(path)!r}. Rename it, for example "
            "with convmv."
        ) from error
    return path


def _holds_images(folder: Path) -> bool:
    """Return whether there are images at any depth; none in a folder that cannot be read, such as lost+found."""
    with contextlib.suppress(MissingInputError):
        return next(image_files(folder), None) is not None
    return False
