"""Faults at named points of a real run: functions of pbd are wrapped as their modules load, and it knows nothing of it.

The faults are JSON in the environment. Which process reaches a point first, and how often, is decided by files that
only one process can create, so that a fault strikes as often as it should, whoever it meets.
"""

import contextlib
import ctypes
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ENVIRONMENT = "PBD_FAULTS"
HERE = Path(__file__).resolve().parent

POINTS = {
    "start": ("pbd.system.backend", "load"),
    "first weights": ("pbd.blockwise.train_group", "_initialise"),
    "tracing": ("pbd.blockwise.distiller", "GroupDistiller.__init__"),
    "training": ("pbd.learning.loop", "ReportProgress.on_train_batch_end"),
    "scoring": ("pbd.blockwise.train_group", "score"),
    "committing": ("pbd.run_dir.journal", "Journal.commit_block"),
    "saving": ("pbd.run_dir.journal", "write_atomically"),
    "gathering": ("pbd.executors.mpi.executor", "MpiExecutor._gather"),
    "planning": ("pbd.pipeline.plan", "make_plan"),
    "assembling": ("pbd.student.assemble", "assemble"),
    "fine-tuning": ("pbd.student.fine_tuning", "FineTuner._end_epoch"),
    "marking": ("pbd.learning.metrics", "evaluate"),
    "finishing": ("pbd.run_dir.manifest", "write"),
    "leaving": ("pbd.report", "summary"),
}
"""Where a fault can strike: just before this function of this module, which is not the main one of a process."""
RECORDED = {
    "noticed": ("pbd.executors.isolation.base", "LostProcessError.__init__"),
    "begun": ("pbd.blockwise.train_group", "_train_in_one_pass"),
    "committed": ("pbd.run_dir.journal", "Journal.commit_block"),
}
"""What is written down, with the names of layers."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    point: str
    kind: str
    """One of `KINDS`."""
    nth: int = 1
    """It strikes the process that reaches the point for the nth time, all processes counted."""
    times: int = 1
    """How often it strikes from then on."""
    role: str = "any"
    """`child` or `worker` (what supervises a child) or `any`."""
    layer: str | None = None
    """It strikes whoever works on this layer; for points that are given a group, or blocks by name."""


@dataclass(frozen=True)
class Plan:
    """The faults of one run."""

    folder: str
    """Where processes write down what happened."""
    faults: tuple[Fault, ...] = ()

    def environment(self) -> dict[str, str]:
        """Return what to add to the environment of the run."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(HERE / "path"), str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
        return {ENVIRONMENT: json.dumps(dataclasses.asdict(self)), "PYTHONPATH": path}

    def note(self, event: str, what: Sequence[str]) -> None:
        """Write down what happened, as a line each; any process of the run may."""
        with open(Path(self.folder) / "events", "a", encoding="utf-8") as out:
            out.write("".join(f"{time.time():.3f}\t{event}\t{each}\n" for each in what))

    def events(self, *kinds: str) -> list[tuple[float, str, str]]:
        """Return what happened, in order: when, what kind of event, and to whom."""
        path = Path(self.folder) / "events"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [line.split("\t") for line in lines]
        return [(float(when), event, what) for when, event, what in found if event in kinds]

    def struck(self) -> list[str]:
        """Return what has struck, in order."""
        return [what for _, _, what in self.events("struck")]

    def reached(self, number: int) -> int:
        """Return how often the point of a fault was reached."""
        return len(list(Path(self.folder).glob(f"reached-{number}.*")))

    def begun_after_commit(self) -> list[str]:
        """Return the layers whose training was begun although they had been committed."""
        committed, again = set[str](), list[str]()
        for _, event, layer in self.events("begun", "committed"):
            if event == "committed":
                committed.add(layer)
            elif layer in committed:
                again.append(layer)
        return again

    def notice_s(self) -> float | None:
        """Return the longest time from a fault to when its process was found lost, or to the end of the run.

        An exception is no loss; `None` where nothing was lost.
        """
        events = self.events("struck", "noticed", "ended")
        waits = [
            min(later for later, other, _ in events[at + 1 :] if other != "struck") - when
            for at, (when, event, what) in enumerate(events)
            if event == "struck" and not what.startswith("raise")
        ]
        return max(waits, default=None)


def _hang() -> None:
    time.sleep(1e6)


def _spin() -> None:
    while True:
        pass


def _raise() -> None:
    raise RuntimeError("injected")


KINDS: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _hang,
    "spin": _spin,
    "raise": _raise,
    "leave": lambda: os._exit(0),
    "kill the launcher": lambda: os.kill(_launcher(), signal.SIGKILL),
    "stop the launcher": lambda: os.kill(_launcher(), signal.SIGTERM),
}


def _launcher() -> int:
    """Return the process that the run was started as: `mpirun`, or the only one that is no child."""
    return int((Path(_plan().folder) / "launcher").read_text())


def prepare() -> None:
    """Wrap the functions of the plan as soon as their modules are there."""
    plan = _plan()
    hooks: dict[str, list[tuple[str, Callable[..., None], bool]]] = {}
    for number, fault in enumerate(plan.faults):
        module, name = POINTS[fault.point]
        hooks.setdefault(module, []).append((name, functools.partial(_strike, plan, number), False))
    for what, (module, name) in RECORDED.items():
        hooks.setdefault(module, []).append((name, functools.partial(_record, plan, what), what == "committed"))
    sys.meta_path.insert(0, _Finder(hooks))


@functools.cache
def _plan() -> Plan:
    told = json.loads(os.environ[ENVIRONMENT])
    return Plan(told["folder"], tuple(Fault(**fault) for fault in told["faults"]))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as ever, and wraps some of their functions once they are loaded."""

    def __init__(self, hooks: dict[str, list[tuple[str, Callable[..., None], bool]]]) -> None:
        self._hooks = hooks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            for function, hook, after in self._hooks[name]:
                _wrap(module, function, hook, after)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType, dotted: str, hook: Callable[..., None], after: bool) -> None:
    *owners, name = dotted.split(".")
    owner = functools.reduce(getattr, owners, module)
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if not after:
            hook(*arguments, **keywords)
        result = function(*arguments, **keywords)
        if after:
            hook(*arguments, **keywords)
        return result

    setattr(owner, name, wrapped)


def _role() -> str:
    return "child" if any("child_main" in part for part in sys.orig_argv) else "worker"


def _concerns(layer: str | None, arguments: Sequence[Any]) -> bool:
    """Return whether a function is called for this layer: with a group that has it, or a block of its name."""
    groups = (each if isinstance(each, dict) else getattr(each, "layer_names", ()) for each in arguments[1:])
    return layer is None or any(layer in names for names in groups)


def _strike(plan: Plan, number: int, *arguments: Any, **_: Any) -> None:
    fault = plan.faults[number]
    if fault.role in ("any", _role()) and _concerns(fault.layer, arguments):
        reached = next(_count(Path(plan.folder) / f"reached-{number}"))
        if fault.nth <= reached < fault.nth + fault.times:
            plan.note("struck", [f"{fault.kind} at {fault.point} in a {_role()}"])
            KINDS[fault.kind]()


def _count(stem: Path) -> Iterator[int]:
    """Yield a number, from 1, that no other process was given."""
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):
            stem.with_name(f"{stem.name}.{number}").touch(exist_ok=False)
            yield number
        number += 1


def _record(plan: Plan, event: str, *arguments: Any, **_: Any) -> None:
    if event == "noticed":
        plan.note(event, [str(arguments[1])])
    elif event == "begun":
        plan.note(event, arguments[1].layer_names)
    elif _role() == "child":  # the coordinator commits again, with its worker and times
        plan.note(event, [arguments[1].layer])
