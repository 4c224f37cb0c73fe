"""Energy in joules, measured: GPUs through NVML, processors through RAPL or AMD's registers.

    with energy.measure() as meter:
        train()
        halfway = meter.read()
        fine_tune()
    whole = meter.read()
    whole.total_j, whole.source, whole.partial
    whole.between(halfway.ended_s, whole.ended_s).total_j

Several processes may measure the same host: `merge` counts each device once. Energy that cannot be measured is `None`
with the source `none`, and a note that gives the reason; nothing is estimated. Memory, disks and fans are not measured.
A meter that fails or hangs does not affect the work that it measures.
"""

from pbd.energy.attribution import Activity, Attribution, attribute
from pbd.energy.detection import DetectedSensors, SystemPaths, detect, host_identity
from pbd.energy.host_meter import NO_ANSWER, HostMeter, NoMeter, measure, unread
from pbd.energy.meter import Meter
from pbd.energy.readings import Reading, Trace, merge

__all__ = [
    "NO_ANSWER",
    "Activity",
    "Attribution",
    "DetectedSensors",
    "HostMeter",
    "Meter",
    "NoMeter",
    "Reading",
    "SystemPaths",
    "Trace",
    "attribute",
    "detect",
    "host_identity",
    "measure",
    "merge",
    "unread",
]
