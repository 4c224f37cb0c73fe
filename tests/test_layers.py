"""The import order of docs/architecture.md: imports run downward, and each heavy library stays in its folder."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast

PACKAGE = Path(__file__).resolve().parents[1] / "pbd"
LINES = (
    {"errors", "records", "collective", "streams", "stop_signals"},
    {"config", "command_line", "progress", "system", "run_dir", "scheduling", "energy"},
    {"data", "networks", "blocks", "executors", "report"},
    {"learning", "deploy"},
    {"blockwise", "student", "analysis"},
    {"costs"},
    {"pipeline", "status"},
    {"compression"},
    {"run", "cli"},
)
"""The lists of docs/architecture.md, "Import order": a folder may import folders on earlier lines, and itself."""
LINE_OF = {name: number for number, line in enumerate(LINES) for name in line}
MOST_FILES = 12
PRIVATE_KERAS = re.compile(r"\bkeras\.src\b|\b_(run_through_graph|nodes_by_depth|keras_history|inbound_nodes)\b")
MAY_USE_PRIVATE_KERAS = {"networks/keras_internals.py", "system/keras_state.py"}
KNOWS_MPI, KNOWS_DASK = "executors/mpi/", "executors/dask/"
MAY_IMPORT_TENSORFLOW = ("data/feeds/tf_", "deploy/", "system/memory.py")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def home(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def source(folder: str) -> list[ast.Module]:
    """Return the parsed modules of one folder."""
    return [ast.parse(path.read_text()) for path in modules() if home(path) == folder]


def homes_imported_by(folder: str) -> set[str]:
    """Return the folders and modules of pbd that a folder imports, anywhere in its code."""
    names = {name for tree in source(folder) for name in imported(tree)}
    return {name.split(".")[1] for name in names if name.startswith("pbd.")} - {folder}


def imported(tree: ast.AST, top_level_only: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports, those under TYPE_CHECKING aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imported(node, top_level_only)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    here = home(path)
    assert here in LINE_OF, f"{here} is on no line: add it to LINES"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "pbd" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        assert LINE_OF[parts[1]] < LINE_OF[here], f"{here} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_mpi_dask_and_tensorflow_are_imported_in_their_folders_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tops = {name.split(".")[0] for name in imported(tree)}
    where = str(path.relative_to(PACKAGE))
    assert "mpi4py" not in tops or where.startswith(KNOWS_MPI)
    assert not tops & {"dask", "distributed"} or where.startswith(KNOWS_DASK)
    assert "tensorflow" not in tops or where.startswith(MAY_IMPORT_TENSORFLOW)
    at_import = {name.split(".")[0] for name in imported(tree, top_level_only=True)}
    assert not at_import & {"tensorflow", "mpi4py"}, "heavy libraries are imported inside functions"


@pytest.mark.parametrize(
    "statement",
    [
        "import pbd; pbd.RunConfig; pbd.RunReport; pbd.distill",
        "import pbd.scheduling.schedulers, pbd.scheduling.simulate, pbd.report, pbd.run_dir.journal, pbd.report.rows",
        "import pbd.run; pbd.run.parse(['--epochs', '3'])",
    ],
)
def test_nothing_heavy_before_it_is_needed(statement: str) -> None:
    heavy = {"tensorflow", "jax", "torch", "keras", "mpi4py", "dask", "sklearn", "jinja2", "matplotlib"}
    check = f"import sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{statement}; {check}"], check=True, timeout=PATIENCE_S)


def test_executors_import_only_the_first_two_lines() -> None:
    assert homes_imported_by("executors") <= LINES[0] | LINES[1]


def test_networks_and_blocks_do_not_import_each_other() -> None:
    assert "blocks" not in homes_imported_by("networks")
    assert "networks" not in homes_imported_by("blocks")


@pytest.mark.parametrize("folder", ["scheduling", "report"])
def test_scheduling_and_report_load_no_keras(folder: str) -> None:
    names = [dotted(path) for path in modules() if home(path) == folder and path.name != "__main__.py"]
    statement = f"import {', '.join(names)}, sys; assert not {{'keras', 'tensorflow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", statement], check=True, timeout=PATIENCE_S)


def test_every_line_names_folders_and_modules_that_exist() -> None:
    assert {home(path) for path in modules()} == set(LINE_OF)


def test_the_package_holds_few_files() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= MOST_FILES


def test_private_keras_is_used_in_two_modules_only() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in modules() if PRIVATE_KERAS.search(path.read_text())}
    assert users == MAY_USE_PRIVATE_KERAS


def dotted(path: Path) -> str:
    return ".".join(("pbd", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports in functions count too; those for types do not.

    `from pbd.blocks import design` is an import of the module `design`, not of the package around it.
    """
    names = {dotted(path) for path in modules()}
    graph = {}
    for path in modules():
        uses = {name for name in imported(ast.parse(path.read_text())) if name.startswith("pbd.")}
        graph[dotted(path)] = {name if name in names else name.rpartition(".")[0] for name in uses}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the modules of a circle
