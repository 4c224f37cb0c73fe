"""All tables of the other sources, one after the other, with the same arguments: those that every script has.

python -m experiments.sources --quick --teacher resnet20.keras --dataset cifar10.npz --run-dir runs/sources
"""

import sys
import time
from collections.abc import Sequence

from experiments.sources import (
    chains,
    common,
    ensemble_table,
    iterative_pruning,
    layer_macs,
    pruning_sweep,
    quantization_table,
    student_designs,
    temperature,
)
from pbd import command_line

NAME = "experiments.sources"
SCRIPTS = (
    pruning_sweep,
    iterative_pruning,
    student_designs,
    quantization_table,
    ensemble_table,
    chains,
    temperature,
    layer_macs,
)
OTHERS = """Other commands print the other tables of these sources:
  make experiments                    the paper, Tables 1 to 9, Figures 5 and 6
  python -m experiments.methods       dissertation, Tables 4.2 and 4.3
  python -m experiments.bias          dissertation, Table 3.3
  python -m experiments.efficiency    dissertation, Tables 5.3, 5.4 and 5.7"""


def run_all(argv: Sequence[str]) -> None:
    """Make each table.

    Raises:
        PbdError: an argument is wrong, or a recipe failed.
    """
    settings = common.parse(NAME, __doc__, argv)
    for script in SCRIPTS:
        began = time.monotonic()
        script.make(settings)
        print(f"{script.__name__.rpartition('.')[-1]}: {time.monotonic() - began:.0f} s\n", file=sys.stderr)
    print(OTHERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, run_all, argv)


if __name__ == "__main__":
    sys.exit(main())
