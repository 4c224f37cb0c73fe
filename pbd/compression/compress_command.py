"""`pbd compress RECIPE.toml`: compression steps in a row, as a file describes them.

The file holds settings of the teacher, the data and the execution, by the names of the flags with `_` for `-`, then
max_drop (the validation accuracy that the result may lose) and targets, and a table for each step:

    teacher = "resnet20.keras"
    dataset = "cifar10.npz"
    max_drop = 0.007

    [[step]]
    use = "replace_blocks"
    budget = "macs:0.5"

    [[step]]
    use = "quantize"
    method = "qat"

Flags override the file. With --resume, steps that are complete in --run-dir are left out.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pbd import command_line
from pbd.command_line import Parser, path
from pbd.config import DataConfig, ExecutionConfig, RunConfig, StudentConfig, TeacherConfig, TrainingConfig
from pbd.config.values import as_kind
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, UsageError
from pbd.pipeline import command
from pbd.system import launcher

if TYPE_CHECKING:
    from pbd.compression.recipe import Recipe

_OF_RECIPE = ("step", "max_drop", "targets")
"""Settings of the file that are none of a run."""


def main(argv: Sequence[str] | None = None, program: str = "pbd compress") -> int:
    """Run the command line; return the exit code."""
    return command.run(argv, program, parse, _run, lambda settings: settings.config.execution.verbose)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the file and the flags say; the steps are not made yet, which loads Keras."""

    config: RunConfig
    steps: tuple[Mapping[str, Any], ...]
    max_drop: float | None
    targets: tuple[str, ...] | None

    def recipe(self) -> "Recipe":
        """Return the recipe.

        Raises:
            UsageError: a step or a setting of it is unknown, or a value is out of its range.
        """
        from pbd.compression import catalogue
        from pbd.compression.recipe import Recipe

        return Recipe(catalogue.made(self.steps), self.max_drop, self.targets)


def parse(arguments: Sequence[str], program: str) -> Settings:
    """Return the settings: flags, then the file, then the defaults.

    Raises:
        SystemExit: help was printed.
        UsageError: a flag or a value is wrong.
        MissingInputError: the file cannot be read.
    """
    parser = Parser(program, __doc__ or "", argument_default=argparse.SUPPRESS)
    parser.add_argument("recipe", metavar="RECIPE.toml", type=path, help="the file")
    command_line.add_settings(parser, _Sections())
    flags = vars(parser.parse_args(arguments))
    file = command_line.read_settings(flags.pop("recipe"), "Check the path.")
    steps, max_drop, targets = (file.pop(name, None) for name in _OF_RECIPE)
    if targets is not None and "target" in file:
        raise UsageError("target and targets exclude each other. Received: both. Give targets, the first one first.")
    max_drop = as_kind("max_drop", float | None, max_drop)
    targets = flags.get("target", targets)
    targets = as_kind("targets", tuple[str, ...] | None, targets)
    _check(file)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UsageError('a recipe needs steps. Received: none. Write a table [[step]] with use = "fine_tune".')
    config = RunConfig.of(**file | flags)
    return Settings(config, tuple(steps), max_drop, targets)


@dataclasses.dataclass(frozen=True)
class _Sections:
    """The settings of a recipe that are flags."""

    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    seed: int = 0
    """All random numbers derive from it and from the numbers of the steps; from 0 to 4294967295."""
    precision: str = TrainingConfig.precision
    """float32, bfloat16, or float16 for the blocks of replace_blocks alone: what networks compute in while they are
    trained (see pbd distill)."""
    fine_tune_keep: str = StudentConfig.fine_tune_keep
    """The epoch whose weights a training of the whole network ends with, where its step does not set one: best, last or
    auto (see pbd distill)."""


def _check(file: Mapping[str, Any]) -> None:
    """Refuse settings of a step outside of a step.

    Raises:
        UsageError: there is one.
    """
    sections = (TeacherConfig, DataConfig, ExecutionConfig)
    names = {field.name for section in sections for field in dataclasses.fields(section)}
    names |= {"seed", "precision", "fine_tune_keep"}
    for name in file:
        if name not in names and name in {"recipe", *RunConfig().flat()}:
            raise UsageError(
                f"{name} is a setting of a step. Received: {name} before the first step. Move it below a [[step]]."
            )


def _run(settings: Settings) -> int:
    from pbd.compression import run_recipe

    finished = run_recipe.run(settings.recipe, settings.config, dedicated_process=True)
    if launcher.rank() in (None, 0):
        from pbd.progress import LastingConsole
        from pbd.report import recipes

        LastingConsole().print(recipes.summary(finished))
    from pbd.run_dir.steps import failed_blocks  # loads NumPy

    failed = any(failed_blocks(step.details) for step in finished.steps)
    return FINISHED_WITH_FAILED_BLOCKS if failed else 0
