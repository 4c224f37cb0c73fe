"""`pbd-report`: pages of run directories are written again, several runs are compared, refusals are one line."""

import json
import shutil
from pathlib import Path

import pytest

from pbd.config import RunConfig
from pbd.errors import CorruptStateError
from pbd.records import ModelFacts
from pbd.records.recipe_report import RecipeReport, StepReport
from pbd.report import recipe_files, write
from pbd.report.__main__ import main
from pbd.run_dir import manifest, steps
from pbd.run_dir.journal import Journal
from tests.helpers.html_document import Document
from tests.helpers.report_factory import full_report, two_rows

pytestmark = pytest.mark.fast


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that is complete."""
    journal = Journal.create(tmp_path / "run", {"seed": 0}, ["b1"])
    for name in manifest.MODELS:
        journal.write_bytes(name, b"a model")
    write(full_report(run_dir="elsewhere"), journal)
    manifest.write(journal)
    return journal.path


def test_several_runs_are_compared(tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Journal(Path(shutil.copytree(run_dir, tmp_path / "other")))
    changed = RunConfig.of(teacher="VGG16", epochs=9).flat()
    energy = {"source": "rapl", "total_j": 500.0}
    write(full_report(config=changed, energy=energy, deployments=two_rows(), blocks=full_report().blocks[1:]), other)
    manifest.write(other)
    path = tmp_path / "comparison.html"
    assert main([str(run_dir), str(other.path), "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    document = Document(path.read_text())
    assert "2 runs compared" in document.texts
    rows = " ".join(document.texts)
    for expected in (str(run_dir), str(other.path), "epochs 5 9", "layers conv* ^conv1 none", "rapl", "500 J"):
        assert expected in rows, expected
    assert "seed" not in document.texts, "the same in both"
    assert manifest.is_intact(other), "nothing in the runs is touched"


def test_the_page_is_made_again_as_it_was(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "report.html"
    before = path.read_bytes()
    assert manifest.is_intact(Journal(run_dir))
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes() == before
    path.write_text("damaged")
    assert manifest.damaged(Journal(run_dir)) == ["report.html"]
    assert main([str(run_dir)]) == 0
    assert path.read_bytes() == before
    assert manifest.is_intact(Journal(run_dir))


def test_a_new_page_does_not_hide_other_damage(run_dir: Path) -> None:
    (run_dir / "student.keras").write_text("something else")
    (run_dir / "report.html").unlink()
    assert main([str(run_dir)]) == 0
    assert manifest.damaged(Journal(run_dir)) == ["student.keras"]


def test_a_new_page_leaves_the_files_of_runtimes_recorded(run_dir: Path) -> None:
    journal = Journal(run_dir)
    journal.write_bytes("student.onnx", b"a network")
    manifest.write(journal, ["student.onnx"])
    assert main([str(run_dir)]) == 0
    assert "student.onnx" in manifest.names(run_dir)
    journal.write_bytes("student.onnx", b"damaged")
    assert manifest.damaged(journal) == ["student.onnx"]


def test_a_page_does_not_replace_a_file_of_a_run(
    tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    for run_dirs in ([run_dir, other], [other]):
        for name in ("report.html", "student.keras", "complete.json"):
            assert main([*map(str, run_dirs), "--output", str(run_dir / name)]) == 73
            assert "belongs to one. Give another --output." in capsys.readouterr().err
    (run_dir / "report.html").write_text("of another version")
    assert main([str(run_dir), "--output", str(run_dir / "report.html")]) == 0, "its page is written anew"
    assert manifest.damaged(Journal(run_dir)) == []
    assert main([str(run_dir), "--output", str(run_dir / "mine.html")]) == 0


@pytest.fixture
def recipe(tmp_path: Path) -> Journal:
    """A recipe that is complete; its page is that of another version."""
    journal = Journal.create(tmp_path / "recipe", {"seed": 0}, [])
    steps.write_names(journal, ["1 fine_tune"])
    teacher = StepReport("teacher", ModelFacts(1000, 10_000, 0.9, 0.9), nonzero_params=1000)
    report = RecipeReport({}, {}, "cpu", (teacher,), "teacher", None, "labels", (), (), 1.0, "")
    recipe_files.write(report, journal)
    journal.write_bytes(recipe_files.PAGE, b"of another version")
    manifest.record(journal, [recipe_files.REPORT, recipe_files.PAGE])
    return journal


def test_a_recipe_whose_page_is_made_again_is_intact(recipe: Journal) -> None:
    assert main([str(recipe.path)]) == 0
    assert recipe.file(recipe_files.PAGE).read_bytes() != b"of another version"
    assert manifest.damaged(recipe) == []


def test_a_recipe_that_has_changed_since_it_was_complete_is_refused(
    recipe: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe.file(recipe_files.REPORT)
    path.write_text(path.read_text().replace('"seconds"', '"seconds" '))
    assert main([str(recipe.path)]) == CorruptStateError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is damaged" in line
    assert "--resume" in line
    assert recipe.file(recipe_files.PAGE).read_bytes() == b"of another version"


def test_recipes_that_are_refused_together_are_not_touched(recipe: Journal, run_dir: Path, tmp_path: Path) -> None:
    assert main([str(recipe.path), str(run_dir)]) == 2
    assert main([str(run_dir), str(recipe.path), "--output", str(tmp_path / "x.html")]) == 2
    assert recipe.file(recipe_files.PAGE).read_bytes() == b"of another version"
    assert not (tmp_path / "x.html").exists()


def test_a_run_of_a_version_without_pages_gets_one(run_dir: Path) -> None:
    content = json.loads((run_dir / "report.json").read_bytes())
    del content["deployments"]
    for row in content["workers"]:
        del row["peak_bytes"]
    (run_dir / "report.json").write_text(json.dumps(content))
    for name in ("report.html", "complete.json"):
        (run_dir / name).unlink()
    assert main([str(run_dir)]) == 0
    assert "speed in a target: not measured" in (run_dir / "report.html").read_text()
    assert not (run_dir / "complete.json").exists()


def test_a_folder_with_nothing_but_a_report_gets_a_page(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    shutil.copy(run_dir / "report.json", tmp_path / "front")
    assert main([str(tmp_path / "front")]) == 0
    assert (tmp_path / "front" / "report.html").is_file()


def test_what_cannot_be_read_or_written_is_said_in_one_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Journal.create(tmp_path / "begun", {"seed": 0})
    damaged = Path(shutil.copytree(run_dir, tmp_path / "damaged"))
    (damaged / "report.json").write_text(json.dumps({"version": 1}))
    garbled = Path(shutil.copytree(damaged, tmp_path / "garbled"))
    (garbled / "complete.json").unlink()
    cases = [
        ([], 2, "arguments are required: RUN_DIR"),
        ([str(tmp_path / "nowhere")], 66, "there is no run in"),
        ([str(begun.path)], 66, "has no report yet"),
        ([str(damaged)], 76, "report.json is damaged"),
        ([str(garbled)], 76, "report.json is damaged"),
        ([str(run_dir), str(damaged), "--output", str(tmp_path / "x.html")], 76, "report.json is damaged"),
        ([str(run_dir), "--output", str(tmp_path / "nowhere" / "x.html")], 66, "in a folder that exists"),
        ([str(run_dir), "--output", str(tmp_path)], 73, "must be a file"),
    ]
    for arguments, code, said in cases:
        assert main(arguments) == code, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pbd-report: ")
        assert said in line
    assert not (tmp_path / "x.html").exists()
