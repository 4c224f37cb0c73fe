"""Measure, in a few steps of each kind, what each layer's block will cost on this device.

table = calibrate(Setup(teacher, tasks, dataset, block="decoupled_r2", block_init="fitted"))
"""

from pbd.costs.layer_timing.calibrate import calibrate
from pbd.costs.layer_timing.setup import Setup, structure_digest

__all__ = ["Setup", "calibrate", "structure_digest"]
