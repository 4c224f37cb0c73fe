"""Python imports this in every process that has its folder on PYTHONPATH."""

from tests.helpers import short_latencies

short_latencies.install()
