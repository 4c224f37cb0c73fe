"""An unexpected exception is written to a file with all its causes; one line names its root cause and the file."""

import os
import pickle
from pathlib import Path

import pytest

from pbd.collective import CollectiveLostError
from pbd.errors import BadInputError, describe, one_line, root_cause
from pbd.run_dir import error_files
from pbd.run_dir.journal import Journal

pytestmark = pytest.mark.fast


def layered() -> RuntimeError:
    """Return an exception with an explicit and an implicit cause."""
    try:
        try:
            try:
                raise MemoryError("shape [64, 512]")
            except MemoryError:
                raise TypeError("Error when deserializing\n" + 900 * "x" + "\nsee above.")  # noqa: B904
        except TypeError as error:
            raise RuntimeError("the block cannot be built") from error
    except RuntimeError as error:
        return error


def test_a_description_holds_the_root_cause_in_one_line() -> None:
    error = layered()
    assert isinstance(root_cause(error), MemoryError)
    assert describe(error) == "RuntimeError: the block cannot be built (root cause: MemoryError: shape [64, 512])"
    assert describe(ValueError("")) == "ValueError: ValueError"
    hidden = RuntimeError("clear")
    hidden.__context__, hidden.__suppress_context__ = KeyError("a lookup"), True
    assert describe(hidden) == "RuntimeError: clear"
    hidden.__cause__ = hidden
    assert root_cause(hidden) is hidden


def test_a_long_message_keeps_its_first_and_its_last_words() -> None:
    line = one_line(ValueError("Graph execution error:\n\n" + 900 * "config " + "\nUnrecognized keyword: groups."))
    assert line.startswith("Graph execution error: config")
    assert line.endswith("Unrecognized keyword: groups")
    assert " … " in line
    assert len(line) <= 403


def test_the_file_holds_the_whole_chain_and_where_it_was_raised(tmp_path: Path) -> None:
    name = error_files.write(Journal(tmp_path), "stage 1/conv@decoupled_r2", layered(), member=3)
    assert name is not None
    assert name.startswith("errors/stage 1%2Fconv@decoupled_r2-")
    content = (tmp_path / name).read_text()
    for words in ("MemoryError", "TypeError", "RuntimeError", "direct cause", "During handling", "in layered", "pbd "):
        assert words in content
    assert f"host: {os.uname().nodename}\nprocess: {os.getpid()}, member 3" in content
    assert error_files.write(Journal(tmp_path), "stage 1/conv@decoupled_r2", layered()) != name


def test_a_directory_that_this_host_does_not_see_is_not_created(tmp_path: Path) -> None:
    assert error_files.write(Journal(tmp_path / "elsewhere"), "task", layered()) is None
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "errors").write_text("a file")
    assert error_files.write(Journal(tmp_path), "task", layered()) is None


def test_it_is_recorded_once_and_its_note_survives_pickling(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(RuntimeError) as caught, error_files.recorded(journal, "FineTuneTask", 1):
        raise layered()
    arrived = pickle.loads(pickle.dumps(caught.value))
    with pytest.raises(RuntimeError), error_files.recorded(journal, "run"):
        raise arrived
    (file,) = (tmp_path / "errors").iterdir()
    assert error_files.summary(caught.value) == f"{describe(caught.value)}. The whole error is in {file}."
    assert error_files.summary(RuntimeError("unknown")) is None


@pytest.mark.parametrize("error", [BadInputError("rule"), CollectiveLostError("lost"), KeyboardInterrupt()])
def test_expected_exceptions_have_no_file(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), error_files.recorded(Journal(tmp_path), "task"):
        raise error
    assert list(tmp_path.iterdir()) == []
