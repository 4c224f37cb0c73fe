"""The folder of a step in the run directory: its network and a record, by which a resumed recipe leaves it out."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pbd.compression.step import StepResult
from pbd.deploy import exporting
from pbd.errors import BadInputError
from pbd.learning.metrics import Metrics
from pbd.networks import files
from pbd.networks.digest import model_digest
from pbd.report import json_safe
from pbd.run_dir import manifest, steps
from pbd.run_dir.archive import json_digest
from pbd.run_dir.journal import Journal

MODEL = "model.keras"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Finished:
    """A step that is complete."""

    result: StepResult
    metrics: Metrics
    """Metrics of its network on the validation split, compared with the first network."""
    seconds: float
    energy_j: float | None
    quantized_scores: Mapping[str, float] = field(default_factory=dict)
    """The validation score of each of its files in 8-bit integers, by target (see `quantized_files.score`)."""

    @property
    def score(self) -> float:
        """The number by which `max_drop` judges the step: that of its worst file in 8-bit integers, if it wrote any."""
        return min(self.quantized_scores.values(), default=self.metrics.score)


@dataclass(frozen=True)
class StepFolder:
    """The folder of one step.

    Args:
        journal: the folder.
        inputs: what the network depends on: the step and its settings, the network before it, the images, the seed.
    """

    journal: Journal
    inputs: Mapping[str, Any]

    @classmethod
    def opened(cls, run_dir: Path, name: str, inputs: Mapping[str, Any]) -> "StepFolder":
        """Return the folder of a step; what it holds of a step with other inputs, or of another step, is deleted.

        A step with other inputs is logged, because its progress is lost.
        """
        path = steps.folder(run_dir, name)
        number, _, _ = path.name.partition("-")
        for other in path.parent.glob(f"{number}-*"):
            if other != path:
                shutil.rmtree(other)
        digest = json_digest(json_safe(dict(inputs)))
        if steps.read_record(path).get("inputs") != digest:
            if path.exists():
                _log.warning("%s: settings, data or the network before have changed: the step is done again.", path)
            shutil.rmtree(path, ignore_errors=True)
            steps.write_record(path, {"inputs": digest})
        return cls(Journal(path, digest), inputs)

    def spend(self, seconds: float, energy_j: float | None) -> None:
        """Add this session's seconds and joules to the step's; without joules of every session, they are `None`."""
        before_s, before_j = self.spent()
        if before_s > 0.0:
            energy_j = None if before_j is None or energy_j is None else before_j + energy_j
        record = steps.read_record(self.journal.path) | {"seconds": before_s + seconds, "energy_j": energy_j}
        steps.write_record(self.journal.path, record)

    def spent(self) -> tuple[float, float | None]:
        """Return the seconds and the joules of the step so far, in all sessions that ended by themselves."""
        record = steps.read_record(self.journal.path)
        return float(record.get("seconds", 0.0)), record.get("energy_j")

    def read(self) -> Finished | None:
        """Return the step if it is complete; a damaged one is logged, and has to be done again."""
        record = steps.read_record(self.journal.path)
        if not steps.is_complete(record):
            return None
        try:
            model = files.load_own(self.journal.file(MODEL))
            if model_digest(model) != record["network"]:
                raise BadInputError("its network is another one")
            quantized = {target: self._unchanged(parts) for target, parts in record["quantized"].items()}
            result = StepResult(model, record["details"], tuple(record["events"]), record["keeps_zeros"], quantized)
            scores = {target: record["quantized_scores"][target] for target in quantized}
            return Finished(result, Metrics(**record["metrics"]), record["seconds"], record["energy_j"], scores)
        except (BadInputError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("%s is damaged (%r): its step is done again.", self.journal.path, error)
            steps.write_record(self.journal.path, {"inputs": self.journal.settings_digest})  # its time is that to come
            return None

    def write(self, finished: Finished) -> Finished:
        """Write a complete step, and return it with the network that the file holds.

        Raises:
            BadInputError: the file holds another network.
        """
        result = finished.result
        files.save_model(self.journal, MODEL, result.model)
        quantized = {
            target: {part.name: manifest.file_digest(part) for part in exporting.files_of(path)}
            for target, path in result.quantized.items()
        }
        record = {
            "inputs": self.journal.settings_digest,
            **self.inputs,
            "network": model_digest(result.model),
            "details": result.details,
            "events": result.events,
            "keeps_zeros": result.keeps_zeros,
            "quantized": quantized,
            "metrics": asdict(finished.metrics),
            "quantized_scores": finished.quantized_scores,
            "seconds": finished.seconds,
            "energy_j": finished.energy_j,
        }
        steps.write_record(self.journal.path, json_safe(record))
        read = self.read()
        if read is None:
            raise BadInputError(
                f"the network of a step must be read back from its file as it is. Received: another one from "
                f"{self.journal.file(MODEL)}. Use layers that Keras writes with all their settings."
            )
        return read

    def _unchanged(self, parts: Mapping[str, str]) -> Path:
        """Return the main file of a network in 8-bit integers.

        Args:
            parts: the digests of its files, by name, the main file first.

        Raises:
            BadInputError: a file has changed.
            OSError: a file is missing.
        """
        if not parts:
            raise BadInputError("its quantised network has no files")
        for name, digest in parts.items():
            if manifest.file_digest(self.journal.file(name)) != digest:
                raise BadInputError(f"{name} has changed")
        return self.journal.file(next(iter(parts)))
