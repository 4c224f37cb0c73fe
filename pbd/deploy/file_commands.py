"""The data of the commands that export and quantise: by flags, or those of the run that wrote the model."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbd.command_line import Parser, path, positive
from pbd.errors import MissingInputError

if TYPE_CHECKING:
    from pbd.data import Data

_SETTINGS = ("dataset", "preprocess", "image_size", "labels", "validation_fraction", "train_limit", "batch_size")


@dataclass(frozen=True)
class SeededData:
    """Data, and the seed with which missing splits are cut from the training images."""

    data: "Data"
    seed: int


def add_flags(parser: Parser) -> None:
    """Add the flags that describe data."""
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        type=path,
        help="as in pbd distill; by default that of the run whose folder holds the model",
    )
    parser.add_argument("--preprocess", metavar="NAME", help="as in pbd distill (default: none)")
    parser.add_argument("--image-size", metavar="N", type=positive, help="as in pbd distill")
    parser.add_argument("--no-labels", dest="labels", action="store_false", help="do not use the labels of the data")


def read(settings: argparse.Namespace) -> SeededData | None:
    """Return the data that the flags describe, or else those of the run that wrote the model; `None` if there are none.

    Raises:
        PbdError: a setting is out of its range.
    """
    from pbd.data import Data

    if settings.dataset is not None:
        chosen = {"preprocess": settings.preprocess or "none", "image_size": settings.image_size}
        data = Data.load(settings.dataset, labels=settings.labels, **chosen)
        return SeededData(data, seed=0)
    config = _config_of_run(Path(settings.model).absolute().parent)
    if config is None or config["dataset"] == "arrays":  # arrays of a Python program are gone with it
        return None
    source, *others = _SETTINGS
    data = Data.load(config[source], **{name: config[name] for name in others})
    return SeededData(data, config["seed"])


def check_file(name: str) -> None:
    """Check that a model file exists.

    Raises:
        MissingInputError: it does not.
    """
    if not Path(name).is_file():
        raise MissingInputError(f"a model file must exist. Received: {name!r}. Check the path.")


def _config_of_run(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run with this folder, `None` if it is no run directory."""
    try:
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
