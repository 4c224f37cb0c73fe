"""What libraries print is discarded, whichever way they print it, and only in the block."""

import logging
import os
import subprocess
import sys

import pytest

from pbd.system.silence import print_error, silenced
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast


def write(text: str) -> None:
    print(text)
    print(text, file=sys.stderr)
    os.write(1, text.encode())
    os.write(2, text.encode())


def test_all_ways_of_printing_are_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced():
        write("secret")
    write("said")
    printed = capfd.readouterr()
    assert "secret" not in printed.out + printed.err
    assert printed.out.count("said") == printed.err.count("said") == 2


def fail_in_silence() -> None:
    with silenced(2):
        os.write(2, b"secret")
        os.write(1, b"said")
        raise ValueError("passes")


def test_one_descriptor_is_silenced_and_an_error_restores_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="passes"):
        fail_in_silence()
    os.write(2, b"again")
    assert capfd.readouterr() == ("said", "again")


def test_the_last_message_of_a_process_is_printed_in_silence_too(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced(), silenced(2):
        print_error("first")
    print_error("second")
    assert capfd.readouterr() == ("", "first\nsecond\n")


def test_a_library_that_configures_logging_in_the_block_does_not_do_it_for_later(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As absl does for the first message that TensorFlow logs."""
    monkeypatch.setattr(logging.root, "handlers", [])
    with silenced():
        logging.basicConfig()
        logging.warning("secret")
    assert logging.root.handlers == []
    logging.basicConfig()
    logging.warning("said")
    assert "said" in capfd.readouterr().err


WITHOUT_OUTPUT = """
import os
from pbd.system.silence import silenced
with silenced():
    os.write(2, b"secret")
os.write(2, b"said")
try:
    os.fstat(1)
except OSError:
    os.write(2, b" and closed")
"""


def test_closed_standard_output_stays_closed() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, WITHOUT_OUTPUT]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "said and closed")
