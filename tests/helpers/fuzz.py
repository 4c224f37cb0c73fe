"""Damage real model files at random and load them: `python -m tests.helpers.fuzz SEED CASES FOLDER`.

Prints a line per case before it is loaded, so that what ends the process can be found, and at last what came out.
"""

import collections
import contextlib
import io
import json
import random
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pbd.errors import BadInputError
from pbd.system import backend, memory
from tests.helpers import forked_checks

SLOWEST_S = 20.0
UNFORKED = 50
"""Every so manieth file is checked as users have it checked: in a fresh Python."""
MOST_BYTES = 1.5e9
ODD_VALUES = (None, -1, 0, 1, 3, 2**31, 2**63, 1e308, "", "relu", "../../x", [], [[1]], {}, True, "keras.layers")


def flip(content: bytes, draws: random.Random) -> bytes:
    """Change a few bytes."""
    changed = bytearray(content)
    for _ in range(draws.randint(1, 8)):
        changed[draws.randrange(len(changed))] = draws.randrange(256)
    return bytes(changed)


def cut(content: bytes, draws: random.Random) -> bytes:
    """Leave out a piece."""
    start = draws.randrange(len(content))
    return content[:start] + content[start + draws.randint(1, 4096) :]


def repeat(content: bytes, draws: random.Random) -> bytes:
    """Repeat a piece somewhere else."""
    start, to = draws.randrange(len(content)), draws.randrange(len(content))
    return content[:to] + content[start : start + draws.randint(1, 4096)] + content[to:]


def edit_json(content: bytes, draws: random.Random) -> bytes:
    """Replace or leave out some value of a JSON document."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(document)
    for _ in range(draws.randint(1, 3)):
        owner, key = draws.choice(places)
        if isinstance(owner, dict) and draws.random() < 0.2:
            owner.pop(key, None)
        else:
            owner[key] = draws.choice(ODD_VALUES)
    return json.dumps(document).encode()


def inside(change: Callable[[bytes, random.Random], bytes], name: str) -> Callable[[bytes, random.Random], bytes]:
    """Return what changes one part of an archive, whose checksum then fits again."""

    def changed(content: bytes, draws: random.Random) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
            for part in old.namelist():
                new.writestr(part, change(old.read(part), draws) if part == name else old.read(part))
        return stream.getvalue()

    changed.__name__ = f"{change.__name__} in {name}"
    return changed


CHANGES: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    ".keras": [
        flip,
        cut,
        repeat,
        inside(edit_json, "config.json"),
        inside(edit_json, "config.json"),
        inside(flip, "config.json"),
        inside(flip, "model.weights.h5"),
        inside(cut, "model.weights.h5"),
        inside(repeat, "model.weights.h5"),
    ],
    ".h5": [flip, cut, repeat],
}


def _small_model() -> Any:
    import keras

    inputs = x = keras.Input((12, 12, 3))
    for number in range(3):
        x = keras.layers.Conv2D(8, 3, padding="same", name=f"conv{number}")(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def main(seed: int, cases: int, folder: Path) -> None:
    """Load so many damaged files; raise what a user would see as a traceback."""
    backend.load()
    from pbd.networks import files

    whole = {}
    for suffix in CHANGES:
        _small_model().save(folder / f"whole{suffix}")
        whole[suffix] = (folder / f"whole{suffix}").read_bytes()
    outcomes: collections.Counter[str] = collections.Counter()
    for case in range(seed, seed + cases):
        draws = random.Random(case)
        suffix = draws.choice(list(CHANGES))
        change = draws.choice(CHANGES[suffix])
        path = folder / f"case{suffix}"
        path.write_bytes(change(whole[suffix], draws))
        print(f"case {case}: {suffix}, {change.__name__}", flush=True)
        began, said = time.monotonic(), ""
        try:
            with contextlib.nullcontext() if case % UNFORKED == 0 else forked_checks.forking():
                files.load(str(path))
        except BadInputError as error:
            said = str(error)
        outcomes["refused" if said else "loaded"] += 1
        assert "\n" not in said, said
        assert time.monotonic() - began < SLOWEST_S, "it took too long"
    assert memory.peak_memory() < MOST_BYTES, memory.peak_memory()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
