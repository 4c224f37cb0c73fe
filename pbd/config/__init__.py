"""The settings of a run."""

from pbd.config.features import FEATURE_WEIGHTS, DistillationConfig, Feature
from pbd.config.recipes import RECIPE_HELP, RECIPES
from pbd.config.settings import (
    AUGMENTATIONS,
    BLOCK_INITS,
    EXECUTORS,
    LIBRARY,
    PARALLEL,
    SCHEDULERS,
    BlockConfig,
    DataConfig,
    ExecutionConfig,
    RunConfig,
    TeacherConfig,
    TrainingConfig,
)
from pbd.config.student import FINE_TUNE_LOSSES, FINE_TUNE_SCOPES, NEED_LABELS, TRAINING_CHECKS, StudentConfig

__all__ = [
    "AUGMENTATIONS",
    "BLOCK_INITS",
    "EXECUTORS",
    "FEATURE_WEIGHTS",
    "FINE_TUNE_LOSSES",
    "FINE_TUNE_SCOPES",
    "LIBRARY",
    "NEED_LABELS",
    "PARALLEL",
    "RECIPES",
    "RECIPE_HELP",
    "SCHEDULERS",
    "TRAINING_CHECKS",
    "BlockConfig",
    "DataConfig",
    "DistillationConfig",
    "ExecutionConfig",
    "Feature",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainingConfig",
]
