"""Every refusal of pbd ends with a remedy, and what the remedies name exists: flags, extras, environment variables."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbd import errors
from pbd.config import RunConfig
from tests.helpers.remedies import EXTRAS

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
REFUSALS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.PbdError)}


def text_of(node: ast.AST) -> str:
    """Return the text of an expression, with an ellipsis for whatever is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return "…"


def refusals() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each refusal."""
    for path in sorted((ROOT / "pbd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REFUSALS and node.args:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ". ".join(map(text_of, node.args))


PLACES = dict(refusals())
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OTHER_FLAGS = {
    "--output": "pbd report",
    "--help": "argparse",
    "--config": "pbd distill",
    "--population": "pbd analyse",
    "--teachers": "pbd analyse",
}
DASK_FLAGS = {"--host", "--nthreads", "--scheduler-file"}
"""Flags of `dask scheduler` and `dask worker`; test_dask_remedies.py gives them to Dask."""


def test_refusals_are_found() -> None:
    assert len(PLACES) > 120
    assert len({place.partition(":")[0] for place in PLACES}) > 40


@pytest.mark.parametrize("place", PLACES)
def test_a_refusal_ends_with_a_remedy(place: str) -> None:
    """Whatever a message says it received is not its end."""
    _, received, rest = PLACES[place].partition("Received: ")
    if received and "; …" not in rest and ", …" not in rest:  # there the remedy is put in
        assert re.search(r"[.)?] *[A-ZF…]|: …", rest), PLACES[place]


def test_each_flag_in_a_refusal_is_one_of_the_command_line() -> None:
    settings = {f"--{name.replace('_', '-')}" for name in RunConfig().flat()}
    negated = {f"--no-{name.removeprefix('--')}" for name in settings}
    for place, text in PLACES.items():
        assert set(FLAG.findall(text)) <= settings | negated | OTHER_FLAGS.keys() | DASK_FLAGS, place


@pytest.mark.parametrize("place", [place for place, text in PLACES.items() if "ith --resume" in text])
def test_a_run_is_resumed_with_its_directory(place: str) -> None:
    """`--resume` alone is refused."""
    assert "--run-dir" in PLACES[place]


REQUIREMENTS = {
    "cpu": "tensorflow-cpu",
    "gpu": "tensorflow[and-cuda]",
    "jax": "jax",
    "jax-cuda": "jax[cuda13]",
    "torch": "torch",
    "dask": "dask[distributed]",
    "energy": "nvidia-ml-py",  # has the module pynvml
    "litert": "ai-edge-litert",
    "onnx": "onnx",
    "openvino": "openvino",
}
"""What must be in an extra for its message to be right."""


def test_each_extra_that_a_message_names_installs_what_is_missing() -> None:
    sources = [path.read_text() for path in (ROOT / "pbd").rglob("*.py")]
    assert {extra for source in sources for extra in re.findall(r"'pbd\[([\w-]+)\]'", source)} == REQUIREMENTS.keys()
    for extra, requirement in REQUIREMENTS.items():
        assert requirement in [re.split("[<>=]", each)[0] for each in EXTRAS[extra]]
