"""Code and documents use the field's words: those that were replaced do not come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pbd", "experiments", "profiling", "launch", "tests", "examples")
REPLACED = {
    **dict.fromkeys(["Crew", "crew"], "WorkerPool"),
    "shared_work": "remote_tasks",
    "TrainShared": "TrainGroupTask",
    "SettleShared": "RecalibrateTask",
    "MarkShared": "EvaluateTask",
    "TimeExchange": "AllReduceBenchmark",
    **dict.fromkeys(["Team", "_Team", "teamwork", "_team"], "Collective"),
    "ThreadTeam": "ThreadCollective",
    "add_up": "all_reduce_sum",
    "give_up": "abort",
    "ALONE": "SINGLE",
    "nothing_kept": "no_checkpoint",
    "Workplace": "TaskRunner",
    "Here": "InProcessRunner",
    "insist": "retry",
    "Greeting": "Setup",
    "Order": "Request",
    "Answer": "Response",
    "Beat": "Heartbeat",
    **dict.fromkeys(["Sum", "_Sum"], "AllReduce"),
    "GiveUp": "Abort",
    "Tray": "SharedBuffer",
    "Packed": "Pickled",
    **dict.fromkeys(["settle", "settle_here"], "recalibrate_batch_norm, set_up_worker or set_up_process"),
    "Roll": "WorkersSnapshot",
    "Meeting": "AllReducePlugin",
    "Membership": "CollectiveMember",
    "Beats": "Heartbeat",
    "Patience": "Timeout",
    "Seldom": "Throttle",
    **dict.fromkeys(["bookmarks", "bookmark"], "checkpoints"),
    "FileBookmark": "CheckpointFile",
    "NoBookmark": "NoCheckpoint",
    "Bookmark": "Checkpoint",
    "Place": "FineTuneState",
    "KeepPlace": "SaveCheckpoint",
    "Marks": "Metrics",
    "Marking": "MetricAccumulator",
    **dict.fromkeys(["Tutoring", "tutoring"], "DistillationModel"),
    "Examiner": "ValidationCallback",
    **dict.fromkeys(["_Tutor", "Tutor", "tutor"], "FineTuner"),
    "pupil": "student_logits",
    **dict.fromkeys(["Workshop", "workshop", "shop"], "StudentBuilder"),
    **dict.fromkeys(["_Crowd", "Crowd"], "TracedGroup"),
    "is_outgrown_by": "should_retrace",
    "ghost_batches": "ghost_batch_norm",
    **dict.fromkeys(["GradientTray", "tray"], "GradientCollector"),
    "GradientStep": "ApplyGradient",
    "lone_block": "block_probe",
    **dict.fromkeys(["Pace", "pace", "paces"], "StepTime"),
    "pace_of": "time_step",
    "beyond": "minus",
    **dict.fromkeys(["Room", "room"], "MemoryBudget"),
    "in_words": "describe",
    **dict.fromkeys(["dials", "dial"], "sensors"),
    "Dial": "Sensor",
    "Finding": "DetectedSensors",
    "complaints": "notes",
    "Bystander": "NoMeter",
    "Account": "EnergyAccount",
    **dict.fromkeys(["Bill", "bill"], "EnergyShares"),
    **dict.fromkeys(["charged", "written_on"], "with_energy"),
    **dict.fromkeys(["story", "_story"], "events"),
    "judged_by": "reference",
    "promise": "accuracy target",
}
"""Names that were replaced, and by what."""
REPLACED_MODULES = {
    "distilling",
    "fitting",
    "stopping",
    "evaluation",
    "packing",
    "completion",
    "preparation",
    "watching",
}
REPLACED_MODULES |= {"link", "joules", "spending", "turns", "beside", "sleepers", "executions"}
REPLACED_MODULES |= {"errands", "together", "teams", "colours"}
"""Names of modules and folders that were replaced, besides the names in `REPLACED`."""
REPLACED_MEMBERS = {
    "pbd/collective.py": {"leave", "part", "begin"},
    "pbd/executors": {"together", "kept", "leave", "part", "do", "rest", "alive", "seen"},
    "pbd/learning": {"mark", "measure", "unit", "part_size"},
    "pbd/student": {"mark", "measure", "make", "tune_here"},
    "pbd/system": {"alive", "seen"},
}
"""Functions, methods, parameters and attributes that were replaced in one place only."""
MARKS = {"marks", "_marks", "marking"}
"""What metrics were called; `marks=` is a keyword of pytest, so only variables and attributes are looked at."""
PRIVATE_WORDS = re.compile(
    r"(?<![a-z])(crew|trays?|tutors?|tutoring|pupils?|settl(e|es|ed|ing)|insist(s|ed)?|bookmarks?|workshop|teamwork|workplace"
    r"|bystander|story|promis(e|es|ed)|judged_by|given[ _]back|part_size|errands?)(?![a-z])",
    re.IGNORECASE,
)
"""Words that have no use in this project, anywhere: parts of names, comments, messages, documents."""
PRIVATE_WORDS_ALLOWED = {
    "pbd/report/files.py": {"judged_by", "story", "given_back"},
    "tests/report/test_report.py": {"judged_by", "story", "given_back"},
    "CHANGELOG.md": {"judged_by", "story", "given_back"},
}
"""Reports of earlier versions have these names."""
VAGUE_LOCALS = {"said", "told", "found", "made", "own", "wanted", "known", "given"}
VAGUE_LOCALS |= {"one", "of", "beside", "ours", "theirs"}
"""Names that do not say what the value is: no variable or parameter in pbd may have one."""


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every identifier in a Python file; strings and comments hold none."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable that is assigned and every parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def members(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of functions, methods, parameters and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def listed(path: Path, uses: Iterable[tuple[int, str]], words: set[str]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in sorted(set(uses)) if name in words]


def test_replaced_names_do_not_come_back() -> None:
    uses = [use for path in files(*FOLDERS) for use in listed(path, identifiers(path), set(REPLACED))]
    hints = "".join(f"\n  {use} -> {REPLACED[use.rpartition(' ')[2]]}" for use in uses)
    assert not uses, f"use the field's words:{hints}"


def texts() -> list[Path]:
    """Return the files in which a word may stand: code, templates, scripts and documents, but for this module."""
    kinds = (".py", ".md", ".j2", ".sh", ".toml")
    folders = (path for folder in (*FOLDERS, "docs") for path in (ROOT / folder).rglob("*") if path.suffix in kinds)
    return sorted({*folders, *ROOT.glob("*.md")} - {Path(__file__).resolve()})


def test_private_words_stand_nowhere() -> None:
    uses = []
    for path in texts():
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = {match.group().lower() for match in PRIVATE_WORDS.finditer(line)}
            uses += [f"{name}:{number}: {word}" for word in sorted(words - PRIVATE_WORDS_ALLOWED.get(name, set()))]
    assert not uses, "\n  ".join(["use the field's words:", *uses])


@pytest.mark.parametrize("name", ["settled", "is_settled_here", "a promise", "PART_SIZE", "Tutor"])
def test_private_words_are_noticed_in_names_and_in_prose(name: str) -> None:
    assert PRIVATE_WORDS.search(name)


def test_no_module_has_a_replaced_name() -> None:
    words = set(REPLACED) | REPLACED_MODULES
    parts = {part for path in files(*FOLDERS) for part in re.split(r"[/.]", str(path.relative_to(ROOT)))}
    assert not parts & words


@pytest.mark.parametrize("place", REPLACED_MEMBERS)
def test_replaced_members_do_not_come_back(place: str) -> None:
    paths = [ROOT / place] if place.endswith(".py") else files(place)
    words = REPLACED_MEMBERS[place]
    uses = [use for path in paths for use in listed(path, members(ast.parse(path.read_text())), words)]
    assert not uses, "\n  ".join(["use the field's words:", *uses])


def test_metrics_are_called_metrics() -> None:
    trees = {path: ast.parse(path.read_text()) for path in files(*FOLDERS)}
    uses = [use for path, tree in trees.items() for use in listed(path, [*bindings(tree), *members(tree)], MARKS)]
    assert not uses, "\n  ".join(["say metrics:", *uses])


def test_variables_say_what_they_hold() -> None:
    uses = [use for path in files("pbd") for use in listed(path, bindings(ast.parse(path.read_text())), VAGUE_LOCALS)]
    assert not uses, "\n  ".join(["say what the value is:", *uses])
