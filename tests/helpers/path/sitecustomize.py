"""Python imports this in every process that has its folder on PYTHONPATH."""

from tests.helpers import bare_runs, short_latencies

short_latencies.install()
bare_runs.install_if_asked()
