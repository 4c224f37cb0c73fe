"""Python imports this in every process that has its folder on PYTHONPATH: faults reach all processes of a run so."""

import os

if "PBD_FAULTS" in os.environ:
    from tests.faults import injection
    from tests.helpers import short_latencies

    short_latencies.install()
    injection.prepare()
