"""Choices of blocks in the run directory, so that a resumed run goes on with the same student.

A choice rests on networks that are assembled, refitted and measured, which takes minutes. Latencies that are measured
again may lead to other blocks, for which there is no checkpoint of fine-tuning.
"""

import logging
import math
from collections.abc import Collection, Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pbd.config import StudentConfig
from pbd.records import BlockKey, BlockResult, ChoiceReport
from pbd.run_dir.archive import json_digest, sealed, unsealed
from pbd.run_dir.journal import Journal

FOLDER = "choices"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptChoice:
    """A choice without the weights of its blocks."""

    designs: Mapping[str, str]
    """The designs by layer."""
    events: tuple[str, ...]
    report: ChoiceReport | None


@dataclass(frozen=True)
class KeptChoices:
    """The choices of a run directory that rest on the same candidates.

    Args:
        journal: the run directory.
        basis: what a choice depends on besides its limit (see `of`); one of another basis is not read.
    """

    journal: Journal
    basis: Mapping[str, Any]

    @classmethod
    def of(
        cls, journal: Journal, settings: StudentConfig, target: str, results: Collection[BlockResult]
    ) -> "KeptChoices":
        """Return the choices among these blocks.

        Args:
            journal: the run directory.
            settings: the settings of the student.
            target: the runtime and precision that latencies hold for.
            results: the results of the tasks, with their divergences.
        """
        candidates = sorted((each.layer, each.design, repr(each.val_kl)) for each in results)
        return cls(
            journal,
            {"candidates": candidates, "target": target, "batch": settings.target_batch, "refit": settings.refits},
        )

    def read(self, limit: str, candidates: Container[BlockKey]) -> KeptChoice | None:
        """Return the choice under a limit among these blocks; `None` if there is none or its file is damaged."""
        path = self.journal.file(self._name(limit))
        try:
            content = unsealed(path.read_bytes())
            report = None if content["report"] is None else ChoiceReport(**content["report"])
            choice = KeptChoice(dict(content["designs"]), tuple(content["events"]), report)
            if not all(BlockKey(*chosen) in candidates for chosen in choice.designs.items()):
                raise ValueError("it has a block that is no candidate")
            return choice
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s is damaged (%s): the blocks are chosen again.", path, error)
            return None

    def write(self, limit: str, choice: KeptChoice) -> None:
        """Keep the choice under a limit, unless its network diverges."""
        if choice.report is None or math.isfinite(choice.report.divergence):
            self.journal.write_json(self._name(limit), sealed(asdict(choice)))

    def _name(self, limit: str) -> str:
        return f"{FOLDER}/{json_digest({**self.basis, 'limit': limit})[:16]}.json"
