"""All of the paper's tables and figures, one after the other, with the same arguments: those that every script has.

python -m experiments.paper --quick --teacher resnet20.keras --dataset cifar10.npz --csv tables --plots plots
"""

import sys
import time
from collections.abc import Sequence

from experiments.paper import figure5, figure6, plans, table1, table9, tables3to6, tables7and8
from pbd import command_line

SCRIPTS = (table1, tables3to6, tables7and8, table9, figure5, figure6)


def run_all(argv: Sequence[str]) -> None:
    """Run each script; parse for all of them before the first is run.

    Raises:
        PbdError: an argument is wrong, or a run failed.
    """
    given = plans.parser("experiments.paper", __doc__).parse_args(argv)
    runs = given.runs or time.strftime("runs/paper-%Y%m%d-%H%M%S")
    todo = [(script, script.parse([*argv, "--runs", str(runs)])) for script in SCRIPTS]
    for script, settings in todo:
        began = time.monotonic()
        script.make(settings)
        name = script.__name__.rpartition(".")[-1]
        print(f"{name}: {time.monotonic() - began:.0f} s\n", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.paper", run_all, argv)


if __name__ == "__main__":
    sys.exit(main())
