"""Files and folders that this user may not read or write: each refusal says so, and following it works."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pbd import command_line, run, status
from pbd.data.folders import load_folder
from pbd.data.loading import _read as read_dataset
from pbd.data.sources import load_npz
from pbd.deploy import latency_command
from pbd.errors import CannotCreateError, MissingInputError, PbdError
from pbd.report import __main__ as report_command
from pbd.report import files as report_files
from pbd.run_dir import lock
from pbd.run_dir.journal import Journal
from pbd.scheduling import cost_table
from tests.helpers.ordinary_user import ordinary_user
from tests.helpers.report_factory import make_report
from tests.scheduling.test_cost_model import TABLE

pytestmark = pytest.mark.fast

IDENTITY = {"epochs": 3}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder with one input of each kind."""
    report_files.write(make_report(), Journal.create(tmp_path / "run", IDENTITY))
    (tmp_path / "empty").mkdir()
    (tmp_path / "settings.toml").write_text("epochs = 3")
    (tmp_path / "model.keras").touch()
    (tmp_path / "costs.json").write_text(json.dumps(TABLE.as_json()))
    np.savez(tmp_path / "data.npz", x_train=np.zeros((4, 2, 2, 1), np.uint8))
    for name in ("ant/deep", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").touch()
    with ordinary_user():
        yield tmp_path
    for folder, inner, _ in os.walk(tmp_path):
        for name in inner:
            Path(folder, name).chmod(0o700)


def raising(command: Callable[..., int], *arguments: object) -> None:
    """Run a command so that its error is raised, not printed."""
    with mock.patch.object(command_line, "run", lambda program, function, argv: function(argv)):
        command([str(argument) for argument in arguments])


def refusal(action: Callable[[], object], error: type[PbdError], words: str) -> str:
    with pytest.raises(error) as caught:
        action()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


Action = Callable[[Path], object]
UNREADABLE: list[tuple[str, int, str, Action]] = [
    ("run", 0, "a run directory", lambda home: Journal.check(home / "run", resume=True)),
    ("run", 0o444, "a run directory", lambda home: Journal.resume(home / "run", IDENTITY)),
    ("run/run.json", 0, "a run directory", lambda home: Journal.resume(home / "run", IDENTITY)),
    ("run", 0, "a run directory", lambda home: raising(status.main, home / "run")),
    ("run", 0, "a report", lambda home: raising(report_command.main, home / "run")),
    ("run/report.json", 0, "a report", lambda home: raising(report_command.main, home / "run")),
    ("data.npz", 0, "a dataset", lambda home: read_dataset(str(home / "data.npz"), True)),
    ("data.npz", 0, "an .npz dataset", lambda home: load_npz(home / "data.npz")),
    ("images", 0, "a dataset", lambda home: read_dataset(str(home / "images"), True)),
    ("images", 0, "a dataset", lambda home: read_dataset(str(home / "images" / "ant"), False)),
    ("images", 0, "a dataset folder", lambda home: load_folder(home / "images")),
    ("images/ant", 0, "a dataset folder", lambda home: load_folder(home / "images")),
    ("images/ant/deep", 0, "a dataset folder", lambda home: load_folder(home / "images", labels=False)),
    ("model.keras", 0, "a model file", lambda home: latency_command.parse([f"{home}/model.keras"], "pbd")),
]


@pytest.mark.parametrize(("name", "mode", "what", "action"), UNREADABLE)
def test_inputs_are_read_after_their_permissions_are_changed(
    home: Path, name: str, mode: int, what: str, action: Action
) -> None:
    (home / name).chmod(mode)
    message = refusal(lambda: action(home), MissingInputError, f"{what} must be readable. Received: ")
    found = re.search(r"(/[^:']+)'?: Permission denied\. Check its permissions|denied: '(.*?)'\. Check its", message)
    assert found is not None, message
    named = Path(found[1] or found[2])
    for path in [*reversed([one for one in named.parents if one.is_relative_to(home)]), named]:
        path.chmod(0o700)
    action(home)


def test_a_folder_beside_the_splits_that_may_not_be_read_is_not_used(home: Path) -> None:
    (home / "images").rename(home / "train")
    root = home / "data"
    (root / "lost+found").mkdir(parents=True)
    (home / "train").rename(root / "train")
    (root / "lost+found").chmod(0)
    assert load_folder(root).num_classes == 2


def create(home: Path, name: str) -> object:
    """Start a run: check first, before any work, and create the directory after it."""
    Journal.check(home / name, resume=False)
    return Journal.create(home / name, IDENTITY)


def held(run_dir: Path) -> None:
    with lock.held(run_dir):
        pass


UNWRITABLE: list[tuple[str, int, Action, str, Action]] = [
    ("empty", 0, lambda home: create(home, "empty"), "Give another --run-dir.", lambda home: create(home, "new")),
    ("empty", 0o555, lambda home: create(home, "empty"), "Give another --run-dir.", lambda home: create(home, "new")),
    ("empty", 0o555, lambda home: create(home, "empty/in"), "Give another --run-dir.", lambda home: create(home, "in")),
    ("run", 0, lambda home: create(home, "run"), "Give another --run-dir.", lambda home: create(home, "new")),
    ("settings.toml", 0, lambda home: create(home, "settings.toml/in"), "--run-dir.", lambda home: create(home, "new")),
    (
        "run",
        0o555,
        lambda home: Journal.resume(home / "run", IDENTITY),
        "Make it writable",
        lambda home: (home / "run").chmod(0o700) or Journal.resume(home / "run", IDENTITY),
    ),
    (
        "run",
        0o555,
        lambda home: Journal.resume(home / "run", IDENTITY),
        "or start anew in another --run-dir.",
        lambda home: create(home, "new"),
    ),
    ("run", 0o555, lambda home: held(home / "run"), "Give another --run-dir.", lambda home: held(home / "empty")),
    (
        "run",
        0o555,
        lambda home: raising(report_command.main, home / "run"),
        "Give --output FILE.",
        lambda home: raising(report_command.main, home / "run", "--output", home / "page.html"),
    ),
    (
        "empty",
        0o555,
        lambda home: raising(report_command.main, home / "run", "--output", home / "empty" / "page.html"),
        "Give another --output.",
        lambda home: raising(report_command.main, home / "run", "--output", home / "page.html"),
    ),
]


@pytest.mark.parametrize(("name", "mode", "refused", "remedy", "followed"), UNWRITABLE)
def test_outputs_are_written_where_the_remedy_says(
    home: Path, name: str, mode: int, refused: Action, remedy: str, followed: Action
) -> None:
    (home / name).chmod(mode)
    refusal(lambda: refused(home), CannotCreateError, remedy)
    followed(home)


@pytest.mark.parametrize(
    ("name", "action", "remedy"),
    [
        ("settings.toml", lambda path: run.parse(["--config", str(path)]), "Check --config."),
        ("costs.json", lambda path: cost_table.read_requested(str(path)), "Check the path."),
    ],
)
def test_another_file_may_be_named(home: Path, name: str, action: Action, remedy: str) -> None:
    (home / name).rename(home / "other")
    (home / name).write_bytes((home / "other").read_bytes())
    (home / name).chmod(0)
    assert "Permission denied" in refusal(lambda: action(home / name), MissingInputError, remedy)
    action(home / "other")
