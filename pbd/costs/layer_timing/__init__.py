"""Time a few training steps of each kind of layer on this device.

table = calibrate(Setup(teacher, tasks, dataset, designs, block_init="fitted"))
"""

from pbd.costs.layer_timing.calibrate import calibrate
from pbd.costs.layer_timing.setup import Setup, structure_digest

__all__ = ["Setup", "calibrate", "structure_digest"]
