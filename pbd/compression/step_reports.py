"""The report of each network of a recipe: its size, its quality, and how fast it is in each target."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pbd.compression import quantized_files
from pbd.compression.context import Context
from pbd.compression.step_folder import MODEL, Finished
from pbd.deploy import deployment, targets
from pbd.learning.metrics import Metrics
from pbd.networks import cost
from pbd.records import Deployment, ModelFacts
from pbd.records.recipe_report import QuantizedReport, StepReport
from pbd.run_dir import steps as of_steps


def make(
    finished: Mapping[str, Finished], settings: Mapping[str, dict[str, Any]], context: Context, names: tuple[str, ...]
) -> Iterator[StepReport]:
    """Yield the report of each network: measured side by side in every target, and on the test images.

    Args:
        finished: the networks, by the name of their step.
        settings: the settings of each step.
        context: the context of the recipe.
        names: the names of the targets.
    """
    deployed, events = _deployed(finished, context, names)
    context.display.phase("evaluating all networks on the test split")
    for name, finished_step in finished.items():
        network = finished_step.result.model
        quantized = tuple(_quantized(finished_step, context))
        yield StepReport(
            name=name,
            network=_facts(name, finished_step, context.evaluate(network, "test"), context.journal.path),
            nonzero_params=sum(int(np.count_nonzero(weight)) for weight in network.get_weights()),
            settings=settings[name],
            seconds=finished_step.seconds,
            energy_j=finished_step.energy_j,
            details=dict(finished_step.result.details),
            events=(
                *finished_step.result.events,
                *(_event(file, context.dataset.labelled) for file in quantized),
                *(events if name == deployment.TEACHER else ()),
            ),
            deployments=tuple(row for row in deployed if row.model == name),
            quantized=quantized,
        )


def _quantized(finished_step: Finished, context: Context) -> Iterator[QuantizedReport]:
    """Yield the report of each file in 8-bit integers that a step wrote."""
    for target, path in finished_step.result.quantized.items():
        name = str(path.relative_to(context.journal.path))
        tested = quantized_files.score(path, target, finished_step.result.model, context, "test")
        yield QuantizedReport(target, name, finished_step.quantized_scores[target], tested)


def _event(file: QuantizedReport, labelled: bool) -> str:
    judged = "accuracy" if labelled else "agreement"
    return f"8-bit integers: {file.path}, validation {judged} {file.val_score:.2%}"


def _deployed(
    finished: Mapping[str, Finished], context: Context, names: tuple[str, ...]
) -> tuple[list[Deployment], list[str]]:
    """Return the networks as measured in each target, and events."""
    rows: list[Deployment] = []
    events: list[str] = []
    networks = {name: finished_step.result.model for name, finished_step in finished.items()}
    for name in names:
        context.display.phase(f"measuring {len(networks)} networks in {name}")
        int8 = {
            step: deployment.QuantizedFile(path, tuple(finished_step.result.details.get("kept_float", ())))
            for step, finished_step in finished.items()
            if (path := finished_step.result.quantized.get(f"{name}-int8")) is not None
        }
        deployed = deployment.measure(
            networks,
            context.dataset,
            targets.TARGETS[name],
            deployment.BATCH_SIZES,
            keep=lambda path: None,
            in_int8=int8,
        )
        measured = {(row.model, row.target) for row in rows}  # Keras stands in for each target that takes no network
        rows += [row for row in deployed.deployments if (row.model, row.target) not in measured]
        events += deployed.events
    return rows, events


def _facts(name: str, finished_step: Finished, test: Metrics, run_dir: Path) -> ModelFacts:
    network = finished_step.result.model
    is_teacher = name == deployment.TEACHER
    path = run_dir / "teacher.keras" if is_teacher else of_steps.folder(run_dir, name) / MODEL
    return ModelFacts(
        params=cost.count_params(network),
        macs=cost.count_macs(network),
        val_accuracy=finished_step.metrics.accuracy,
        test_accuracy=test.accuracy,
        path=str(path.relative_to(run_dir)),
        size_bytes=path.stat().st_size,
        val_agreement=finished_step.metrics.agreement,
        test_agreement=test.agreement,
        val_kl=finished_step.metrics.kl,
        test_kl=test.kl,
    )
