"""Small real runs to inject faults into, and what can be told of them afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pbd import status
from pbd.errors import PbdError
from pbd.run_dir import error_files, manifest
from pbd.run_dir.journal import Journal
from tests.faults.injection import ENVIRONMENT, Fault, Plan

LIMIT_S = 240.0
"""A run that takes longer hangs: without faults it takes about 20 s, what hangs is ended after 24 at the latest, what
spins after 120."""
STALL_LIMIT_S = 12
LAYERS = ("a1", "a2", "b1", "b2")
SETTINGS = [
    "--batch-size",
    "64",
    "--epochs",
    "2",
    "--fine-tune-epochs",
    "3",
    "--target",
    "keras",
]
SETTINGS += ["--allow-weak-teacher"]
SETTINGS += [
    "--threads-per-worker",
    "1",
    "--max-accuracy-drop",
    "1",
    "--augment",
    "flip",
    "--stall-limit",
    str(STALL_LIMIT_S),
]
WAYS = {
    "serial": ([], []),
    "mpi": (["mpirun", "-n", "2"], ["--parallel", "task"]),
    "mpi, shared": (["mpirun", "-n", "2"], ["--parallel", "data"]),
    "dask": ([], ["--executor", "dask", "--workers", "2", "--no-group"]),
}


def make_teacher(path: Path) -> Path:
    """Write a small residual network with four convolutions to replace; its weights are random but fixed."""
    import keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="stem")(x)
    for name in ("a", "b"):
        y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name=f"{name}1")(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        y = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name=f"{name}2")(y)
        x = keras.layers.Add()([x, y])
    outputs = keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, outputs, name="residual").save(path)
    return path


def make_digits(path: Path, training: int, measured: int) -> Path:
    """Write digits of 32 x 32 pixels: so many training images, and so many validation and test images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[..., None] * 15.9).astype("uint8").repeat(4, axis=1).repeat(4, axis=2)
    ends = np.cumsum([0, training, measured, measured])
    parts = {name: slice(*ends[n : n + 2]) for n, name in enumerate(("train", "val", "test"))}
    arrays = {f"x_{name}": images[part] for name, part in parts.items()}
    np.savez(path, **arrays, **{f"y_{name}": digits.target[part] for name, part in parts.items()})
    return path


@dataclass(frozen=True)
class Outcome:
    """What became of a run, or of several of one run directory."""

    run_dir: Path
    plan: Plan
    code: int | None
    """`None` where it hung."""
    seconds: float
    said: str
    orphans: tuple[int, ...]
    """Processes that were there some seconds after the end."""

    @property
    def struck(self) -> list[str]:
        return self.plan.struck()

    @property
    def rerun(self) -> list[str]:
        """Layers that were begun again after they had been committed."""
        return self.plan.begun_after_commit()

    @cached_property
    def status(self) -> status.Status | None:
        """What `pbd-status` says; `None` where there is no run."""
        try:
            return status.read(self.run_dir)
        except PbdError:
            return None

    @property
    def complete(self) -> bool:
        return self.status is not None and self.status.state == status.COMPLETE

    @property
    def failed(self) -> tuple[str, ...]:
        """The layers that the report names as failed."""
        return self.status.failed if self.status else ()

    @property
    def described(self) -> str:
        """What a failed check prints: the end of the run, the events of its faults, its files, errors and output."""
        parts = [f"code {self.code} after {self.seconds:.1f} s, orphans {self.orphans}"]
        paths = sorted(path for path in self.run_dir.rglob("*") if path.is_file())
        parts.append("files: " + ", ".join(str(path.relative_to(self.run_dir)) for path in paths))
        texts = [Path(self.plan.folder) / "events", *sorted((self.run_dir / error_files.FOLDER).glob("*"))]
        parts += [f"{path}:\n{path.read_text(encoding='utf-8')}" for path in texts if path.exists()]
        return "\n\n".join([*parts, f"output:\n{self.said}"])

    @property
    def notice_s(self) -> float | None:
        """From the fault to when it was noticed, or to the end; `None` where nothing was lost."""
        return self.plan.notice_s()


@dataclass(frozen=True)
class Range:
    """Where runs are made."""

    folder: Path
    teacher: Path
    images: Path

    @classmethod
    def at(cls, folder: Path) -> "Range":
        """Make one; nothing may be there."""
        folder.mkdir(parents=True)
        return cls(folder, make_teacher(folder / "teacher.keras"), make_digits(folder / "digits.npz", 448, 128))

    def run(
        self,
        name: str,
        way: str,
        faults: Sequence[Fault] = (),
        arguments: Sequence[str] = (),
        killed_after_s: float | None = None,
        number: int = signal.SIGKILL,
    ) -> Outcome:
        """Run, or go on with, the run of this name.

        Args:
            name: of the run directory.
            way: one of `WAYS`.
            faults: what goes wrong.
            arguments: for `pbd-run`.
            killed_after_s: when to send its launcher a signal.
            number: which.
        """
        launcher, own = WAYS[way]
        run_dir = self.folder / name / "run"
        plan = Plan(str(self.folder / name / "faults"), tuple(faults))
        inputs = ["--teacher", str(self.teacher), "--dataset", str(self.images)]
        command = [*launcher, sys.executable, "-m", "pbd.run", *inputs, *SETTINGS, *own]
        resume = ["--resume"] if (run_dir / "run.json").exists() else []
        environment = {key: value for key, value in os.environ.items() if "THREADS" not in key} | plan.environment()
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        began = time.monotonic()
        with open(self.folder / name / "said", "a+", encoding="utf-8") as said:
            process = subprocess.Popen(
                [*command, "--run-dir", str(run_dir), *resume, *arguments],
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            (Path(plan.folder) / "launcher").write_text(str(process.pid))
            code = _wait(process, killed_after_s, number)
            seconds = time.monotonic() - began
            plan.note("ended", ["-"])
            orphans = _orphans(plan)
            for pid in orphans if code is not None else _processes(plan):
                os.kill(pid, signal.SIGKILL)
            said.seek(0)
            return Outcome(run_dir, plan, code, seconds, said.read(), tuple(orphans))

    def outcomes(self, name: str) -> Any:
        """Return what the report of a run says but for times and places; `None` where there is none."""
        path = self.folder / name / "run" / "report.json"
        return outcomes_of(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def weights(self, name: str) -> list[np.ndarray]:
        """Return the weights of the student of a run."""
        import keras

        return keras.models.load_model(self.folder / name / "run" / "student.keras", compile=False).get_weights()


def _wait(process: "subprocess.Popen[bytes]", after_s: float | None, number: int) -> int | None:
    try:
        if after_s is not None:
            try:
                return process.wait(after_s)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return None


def _orphans(plan: Plan, patience_s: float = 8.0) -> list[int]:
    until = time.monotonic() + patience_s
    while (left := _processes(plan)) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def _processes(plan: Plan) -> list[int]:
    """Return the processes of a run, which have its plan in their environment."""
    mark, found = f'{ENVIRONMENT}={{"folder": "{plan.folder}"'.encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            zombie = entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and mark in entry.joinpath("environ").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


OF_ONE_RUN = {"seconds", "started_s", "predicted_s", "timing", "latency", "energy", "workers", "groups", "scheduler"}
OF_ONE_RUN |= {"run_dir", "path", "resume"}
"""What a report says of when, where and by whom something was done, not of what came out."""


def outcomes_of(report: Any) -> Any:
    """Return a report without what two runs that end alike may say differently."""
    if isinstance(report, dict):
        return {key: outcomes_of(value) for key, value in report.items() if key not in OF_ONE_RUN}
    return [outcomes_of(each) for each in report] if isinstance(report, list) else report


def differences(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Return the largest difference of any weight, over the largest of its variable."""
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) for a, b in zip(one, other, strict=True))


def blocks_lost(outcome: Outcome) -> list[str]:
    """Return the layers whose blocks are not in the run directory."""
    return sorted(set(LAYERS) - {key.layer for key in Journal(outcome.run_dir).committed_blocks()})


def is_truly_complete(outcome: Outcome) -> bool:
    """Return whether all that a complete run has is there and whole, found without its own record."""
    made = all((outcome.run_dir / name).exists() for name in (*manifest.MODELS, *manifest.TEXTS))
    return made and not blocks_lost(outcome)


def pick(draws: random.Random, points: Sequence[str], kinds: Sequence[str]) -> Fault:
    """Return a random fault that strikes a child once."""
    return Fault(draws.choice(points), draws.choice(kinds), nth=draws.randint(1, 2), role="child")
