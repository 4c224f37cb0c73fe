"""Recipes: other defaults for some settings, by name."""

from collections.abc import Mapping
from typing import Any

from pbd.config.values import as_kind, one_of

RECIPES: dict[str, dict[str, Any]] = {
    "quick": {"fine_tune_epochs": 3},
    "standard": {},
    "patient": {
        "augment": "flip_crop",
        "fine_tune_epochs": 80,
        "fine_tune_loss": "kd_kl",
        "temperature": 2.0,
        "mixup": 1.0,
    },
    "paper": {
        "block": ("two_layer",),
        "block_init": "noise",
        "learning_rate": 0.01,
        "patience": 0,
        "fine_tune_loss": "cross_entropy",
    },
}
"""`patient` follows Beyer et al. 2021, arXiv:2106.05237; `paper`, arXiv:2012.03096."""
RECIPE_HELP = (
    "Other defaults: quick (3 epochs of fine-tuning), standard, patient (80 epochs of fine-tuning with kd_kl at "
    "temperature 2, mixup 1 and augment flip_crop), or paper (two_layer from random weights, the student fine-tuned on "
    "the labels). Settings that are given win over the recipe."
)


def recipe_settings(name: Any, current: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a recipe changes: those that are at their defaults.

    Raises:
        UsageError: there is no such recipe.
    """
    one_of("recipe", as_kind("recipe", str, name), RECIPES)
    return {setting: value for setting, value in RECIPES[name].items() if current[setting] == defaults[setting]}
