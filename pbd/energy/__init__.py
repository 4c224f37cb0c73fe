"""Joules, and what measured them: GPUs through NVML, processors through RAPL or AMD's registers, or none.

    with energy.measure() as meter:
        train()
        halfway = meter.read()
        fine_tune()
    whole = meter.read()
    whole.total_j, whole.source, whole.partial
    whole.between(halfway.ended_s, whole.ended_s).total_j

Every worker may measure the host that it shares with others: `merge` counts each device once. What cannot be measured
is `None` from the source `none`, with a line that says why; nothing is estimated. A host's memory, disks and fans are
not measured. A meter that fails or hangs costs its joules, not what it measures.
"""

from pbd.energy.finding import DetectedSensors, Places, find, host_identity
from pbd.energy.host_meter import HostMeter, NoMeter, measure, unread
from pbd.energy.meter import Meter
from pbd.energy.readings import Reading, Trace, merge
from pbd.energy.sharing import Shares, Span, share_out

__all__ = [
    "DetectedSensors",
    "HostMeter",
    "Meter",
    "NoMeter",
    "Places",
    "Reading",
    "Shares",
    "Span",
    "Trace",
    "find",
    "host_identity",
    "measure",
    "merge",
    "share_out",
    "unread",
]
