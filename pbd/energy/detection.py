"""Detection of this host's energy sensors."""

import platform
from dataclasses import dataclass
from pathlib import Path

from pbd.energy import amd_msr, nvml, rapl
from pbd.energy.sensors import Sensor


@dataclass(frozen=True)
class SystemPaths:
    """The files in which Linux shows sensors and processors."""

    powercap: Path = Path("/sys/class/powercap")
    msr: Path = Path("/dev/cpu")
    topology: Path = Path("/sys/devices/system/cpu")
    cpuinfo: Path = Path("/proc/cpuinfo")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class DetectedSensors:
    """The sensors of a host."""

    host: str
    sensors: tuple[Sensor, ...] = ()
    notes: tuple[str, ...] = ()
    """Why a device has no sensor, one line each, with the remedy."""


def detect(paths: SystemPaths | None = None, cores: bool = False) -> DetectedSensors:
    """Return the sensors of this host's GPUs and processors; AMD's registers are used only without RAPL.

    Args:
        paths: the paths of the meters.
        cores: whether to return sensors of physical cores, too, which only AMD's registers provide.
    """
    paths = paths or SystemPaths()
    host = host_identity(paths.boot_id)
    gpus, gpu_note = nvml.detect(host)
    packages, rapl_note = rapl.detect(host, paths.powercap)
    registers: tuple[Sensor, ...] = ()
    msr_note: str | None = None
    if not packages:
        registers, msr_note = amd_msr.detect(host, paths.msr, paths.topology, paths.cpuinfo)
    processor_notes = () if packages or registers else (rapl_note, msr_note)
    sensors = (*gpus, *packages, *registers)
    return DetectedSensors(
        host,
        tuple(sensor for sensor in sensors if cores or sensor.device.kind != "core"),
        tuple(note for note in (gpu_note, *processor_notes) if note),
    )


def host_identity(boot_id: Path = SystemPaths.boot_id) -> str:
    """Return a name that is the same in all processes and containers of a host, and different on other hosts."""
    try:
        return boot_id.read_text().strip()
    except OSError:
        return platform.node()
