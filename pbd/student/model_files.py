"""The model files of a run: written, loaded again and compared with the networks in memory."""

from pathlib import Path
from typing import Any

import keras

from pbd.deploy import inference_form, parity
from pbd.errors import BadInputError, PbdError
from pbd.networks import files
from pbd.run_dir.journal import Journal

STUDENT, FOLDED = "student.keras", "student_folded.keras"
REMEDY = "Set TF_ENABLE_ONEDNN_OPTS=0 in the environment and go on with --resume --run-dir DIR."
"""TensorFlow's oneDNN kernels are the known cause."""


def check_teacher(path: Path, teacher: keras.Model, images: Any) -> None:
    """Check that the teacher's file computes what the teacher computes, before anything is trained on its outputs.

    Args:
        path: the path of the file.
        teacher: flat and functional.
        images: preprocessed images on which the file is compared with the teacher.

    Raises:
        BadInputError: it computes something else, or cannot be run.
    """
    difference = parity.mismatch(path, teacher, images)
    if difference is not None:
        raise BadInputError(
            "the teacher must compute the same in graph mode as operation by operation. "
            f"Received: {difference}. {REMEDY}"
        )


def write(journal: Journal, student: keras.Model, images: Any) -> tuple[str, ...]:
    """Write the student and its inference form into the run directory, and check what the files compute.

    If the inference form computes something else, its file holds the student as it is.

    Args:
        journal: writes the files.
        student: flat and functional.
        images: preprocessed images on which the files are compared with the student.

    Returns:
        Events for the report.

    Raises:
        PbdError: student.keras does not compute what the student computes.
    """
    path = journal.write_bytes(STUDENT, files.model_bytes(student))
    difference = parity.mismatch(path, student, images)
    if difference is not None:
        raise PbdError(
            f"{STUDENT} must compute in graph mode what the student computes. Received: {difference}. {REMEDY}"
        )
    path = journal.write_bytes(FOLDED, files.model_bytes(inference_form.fold(student)))
    difference = parity.mismatch(path, student, images)
    if difference is None:
        return ()
    journal.write_bytes(FOLDED, journal.file(STUDENT).read_bytes())
    return (f"{FOLDED} holds the student as it is: of the folded network, {difference}",)
