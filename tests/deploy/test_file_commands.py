"""Data of the commands that write files: by default those of the run whose folder holds the model."""

import json
from pathlib import Path

import pytest

from pbd.command_line import Parser
from pbd.config import RunConfig
from pbd.deploy import file_commands
from pbd.deploy.export_command import output_beside
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal


@pytest.mark.parametrize(("split_seed", "source"), [(None, "train"), (5, "test")])
def test_the_splits_are_those_of_the_run(split_seed: int | None, source: str, tmp_path: Path) -> None:
    config = RunConfig.of(seed=3, split_seed=split_seed, validation_from=source, batch_size=16).flat()
    if split_seed is None:
        del config["split_seed"], config["validation_from"]  # as in reports of earlier versions
    (tmp_path / "report.json").write_text(json.dumps({"config": config}), encoding="utf-8")
    read = read_data(tmp_path)
    assert (read.data.config.split_seed, read.data.config.validation_from) == (split_seed, source)
    assert (read.seed, read.data.batch_size, read.data.config.labels) == (3, 16, True)
    other = read_data(tmp_path, "--no-labels", "--preprocess", "unit", "--image-size", "9", "--validation-from", "test")
    found = other.data.config
    assert (found.labels, found.preprocess, found.image_size, found.validation_from) == (False, "unit", 9, "test")
    assert (other.seed, other.data.batch_size) == (3, 16)


def test_other_images_are_prepared_as_those_of_the_run(tmp_path: Path) -> None:
    settings = {"dataset": "arrays", "preprocess": "tf", "image_size": 8, "labels": False, "train_limit": 5, "seed": 3}
    (tmp_path / "report.json").write_text(json.dumps({"config": RunConfig.of(**settings).flat()}), encoding="utf-8")
    read = read_data(tmp_path, "--dataset", "digits")
    config = read.data.config
    assert (config.dataset, config.preprocess, config.image_size, read.seed) == ("digits", "tf", 8, 3)
    assert (config.labels, config.train_limit) == (True, None)


def read_data(folder: Path, *flags: str) -> file_commands.SeededData:
    """Return the data for the student of the run in a folder."""
    parser = Parser("pbd quantize", "")
    file_commands.add_data_flags(parser)
    parser.set_defaults(model=str(folder / "student.keras"))
    read = file_commands.read(parser.parse_args(flags))
    assert read is not None
    return read


def test_validation_images_can_be_those_of_the_test_split(tmp_path: Path) -> None:
    for flags, source in (([], "train"), (["--validation-from", "test"], "test")):
        read = read_data(tmp_path, "--dataset", "digits", *flags)
        assert read.data.config.validation_from == source


def test_a_file_that_belongs_to_the_run_is_not_overwritten(tmp_path: Path) -> None:
    model, of_run = str(tmp_path / "student.keras"), tmp_path / "student.xml"
    assert output_beside(model, "openvino", ".xml") == of_run
    journal = Journal(tmp_path)
    journal.write_bytes("student.xml", b"a network")
    manifest.record(journal, ["student.xml"])
    exported = output_beside(model, "openvino", ".xml")
    assert exported == tmp_path / "student_openvino.xml"
    journal.write_bytes(exported.name, b"another")
    assert manifest.damaged(journal) == []
    assert output_beside(model, "openvino", ".xml") == exported
    assert output_beside(model, "onnx", ".onnx") == tmp_path / "student.onnx"
    assert output_beside(model, "openvino-int8", ".xml") == tmp_path / "student_openvino_int8.xml"
    journal.write_bytes(manifest.RECORD, b"{")
    assert output_beside(model, "openvino", ".xml") == of_run
