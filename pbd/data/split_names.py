"""Names of splits as people spell them: `train`, `Training`, `test_set`, `valid`, `X_train`, `test_labels`."""

import re
from collections.abc import Iterable
from typing import Literal

Role = Literal["train", "validation", "test"]
_WORDS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "validate", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_ENDINGS = ("", "set", "data", "dataset", "images", "imgs", "split")
_KINDS = {"x": ("x", "images", "imgs", "image", "data"), "y": ("y", "labels", "label", "targets", "target")}
_SHORT = {"train": "train", "validation": "val", "test": "test"}

_ROLES = {word + ending: role for role, words in _WORDS.items() for word in words for ending in _ENDINGS}
_ARRAYS = {
    spelling: f"{kind}_{_SHORT[role]}"
    for kind, kind_words in _KINDS.items()
    for role, words in _WORDS.items()
    for kind_word in kind_words
    for word in words
    for spelling in (kind_word + word, word + kind_word)
} | {word: f"{kind}_train" for kind, words in _KINDS.items() for word in words}


def split_role(folder: str) -> Role | None:
    """Return the split that a folder's name stands for, in any case and with any separators; `None` for others.

    Example:
        >>> split_role("Training_set"), split_role("val2017"), split_role("bullet_train")
        ('train', 'validation', None)
    """
    return _ROLES.get(_letters(folder))


def standard_arrays(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of an archive by the standard name of the array that they stand for, such as `x_train`.

    A standard name that is among the keys stands for itself alone. Other keys are left out.
    """
    by_name: dict[str, list[str]] = {}
    for key in keys:
        if (name := _ARRAYS.get(_letters(key))) is not None:
            by_name.setdefault(name, []).append(key)
    return {name: [name] if name in spellings else spellings for name, spellings in by_name.items()}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.casefold())
