"""The command line of `pbd analyse`."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from pbd.compression import analyse_command
from pbd.errors import CannotCreateError, MissingInputError, PbdError, UsageError
from tests.helpers.analysis_factory import make_analysis
from tests.helpers.ordinary_user import ordinary_user


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("teacher.keras", "student.keras")]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--teachers", "TEACHER"], UsageError, "--teachers is for a population"),
        (["--population", "1"], UsageError, "two students or more"),
        (["TEACHER", "--population", "3"], UsageError, "repeats the run of one student. Received: 2 students"),
        (["--population", "--workers", "2"], UsageError, "--workers is for --population N"),
        (["--html", "nowhere/page.html"], MissingInputError, "--html must lie in a folder"),
        (["missing.keras"], MissingInputError, "a model file must exist. Received: 'missing.keras'"),
        (["--limit", "0"], UsageError, "--limit: must be a whole number above 0"),
    ],
)
def test_a_wrong_flag_is_refused(models: list[str], flags: list[str], error: type[PbdError], message: str) -> None:
    arguments = [*models, *(models[0] if flag == "TEACHER" else flag for flag in flags)]
    with pytest.raises(error, match=message):
        analyse_command.parse(arguments, "pbd analyse")


def test_networks_are_compared_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pbd.networks import files
    from tests.deploy import small_networks

    monkeypatch.setattr(files, "load", files.read)  # not checked in a process of its own, which takes seconds
    paths = [tmp_path / "teacher.keras", tmp_path / "a" / "student.keras", tmp_path / "b" / "student.keras"]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        small_networks.classifier(seed=seed).save(path)
    # Fewer training images than a batch of the default size.
    splits = {f"x_{name}": small_networks.images(48, seed) for seed, name in enumerate(("train", "val", "test"))}
    labels = {name.replace("x", "y"): np.arange(48) % 4 for name in splits}
    np.savez(tmp_path / "data.npz", **splits, **labels)
    page = tmp_path / "page.html"
    arguments = [*map(str, paths), "--dataset", str(tmp_path / "data.npz"), "--html", str(page), "--json"]
    assert analyse_command.main([*arguments, "--population", "--layers", "stem"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["teacher"] == str(paths[0])
    assert [row["name"] for row in report["students"]] == list(map(str, paths[1:]))  # two files of one name
    assert [row["layer"] for row in report["students"][0]["layers"]] == ["stem", "logits"]
    assert report["students"][0]["changes"]["classes"][0]["images"] == 12
    assert report["population"]["students"] == 2
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_data_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "model.keras")
    Path(path).touch()
    assert analyse_command.main([path, path]) == 2
    assert "an analysis needs images. Received: none. Give --dataset." in capsys.readouterr().err


@pytest.mark.fast
def test_an_analysis_whose_page_cannot_be_written_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    tmp_path.chmod(0o555)
    with ordinary_user(), pytest.raises(CannotCreateError, match="Permission denied"):
        analyse_command.write(make_analysis(), argparse.Namespace(html=str(page), json=True))
    assert json.loads(capsys.readouterr().out)["teacher"] == make_analysis().teacher
    tmp_path.chmod(0o755)
    analyse_command.write(make_analysis(), argparse.Namespace(html=str(page), json=False))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
