"""`python -m tests.helpers.several_runs SETTINGS`: call `pbd.distill` once for each settings of a JSON list.

One start of Python and TensorFlow serves several runs; under `mpirun` every rank takes part in all of them.
"""

import json
import sys

from tests.helpers import bare_runs


def main() -> None:
    """Make the runs, one after the other."""
    bare_runs.install()
    import pbd
    from pbd.system import backend

    backend.dedicate_process()
    backend.load()
    for settings in json.loads(sys.argv[1]):
        pbd.distill(**settings)


if __name__ == "__main__":
    main()
