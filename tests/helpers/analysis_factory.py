"""An analysis with every kind of row, for tests of what is made from it."""

import dataclasses
from typing import Any

from pbd.records.analysis_report import (
    AnalysisReport,
    ClassChanges,
    ClassRates,
    ConfusionChange,
    ExemplarImage,
    LayerSimilarity,
    PopulationAnalysis,
    SimilarityMap,
    StudentAnalysis,
)


def make_changes(**changes: Any) -> ClassChanges:
    """Return the changes of three classes, of which CEV and SDE leave the last one out."""
    row = ClassChanges(
        teacher_accuracy=0.9,
        student_accuracy=0.85,
        classes=(
            ClassRates(0, 4, 0.75, 0.5, 0.5, 0.25, 0.25, 0.5, -50.0, 100.0),
            ClassRates(1, 4, 0.5, 0.75, 0.25, 0.5, 0.5, 0.25, 100.0, -50.0),
            ClassRates(2, 0, None, None, 0.0, 0.0, None, None, None, None),
        ),
        cev=11250.0,
        sde=106.066,
        left_out=(2,),
        negative_flips=0.0625,
        positive_flips=0.0125,
        teacher_ece=0.0311,
        student_ece=0.0422,
        confusions=(ConfusionChange(0, 1, 1, 4),),
    )
    return dataclasses.replace(row, **changes)


def make_student(name: str = "student", layer: str = "conv1", **changes: Any) -> StudentAnalysis:
    """Return a student with one layer that has a block, and one without a counterpart."""
    row = StudentAnalysis(
        name=name,
        churn=0.125,
        layers=(
            LayerSimilarity(layer, f"{layer}_pbd_row", 0.8765, 0.1235, 0.9512, (16, 14)),
            LayerSimilarity("logits", "logits", None, None, None, (3, 3)),
        ),
        unmatched=("conv2",),
        similarity=SimilarityMap((layer, "conv2", "logits"), (layer, "logits"), ((0.9, 0.1), (0.5, 0.2), (0.3, None))),
        changes=make_changes(),
    )
    return dataclasses.replace(row, **changes)


def make_analysis(*students: StudentAnalysis, **changes: Any) -> AnalysisReport:
    """Return the analysis of these students, by default of one, with the exemplars of a population."""
    report = AnalysisReport(
        teacher="models/resnet20.keras",
        data="cifar.npz",
        split="test",
        images=8,
        similarity_images=6,
        positions="average",
        students=students or (make_student(),),
        population=PopulationAnalysis(1, 2, (ExemplarImage(3, None, 0, 1),)),
        absent=(),
        notes=("No similarity, since the activations of a network are constant or not finite: logits.",),
    )
    return dataclasses.replace(report, **changes)
