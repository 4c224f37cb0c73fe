"""Python imports this in every process that has its folder on PYTHONPATH: faults reach all processes of a run so."""

import os

if "PBD_FAULTS" in os.environ:
    from tests.faults import injection
    from tests.helpers import bare_runs, short_latencies

    short_latencies.install()
    bare_runs.install_if_asked()
    injection.prepare()
