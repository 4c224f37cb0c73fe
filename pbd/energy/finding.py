"""What of this host can be measured, and why not more."""

import platform
from dataclasses import dataclass
from pathlib import Path

from pbd.energy import amd_msr, nvml, rapl
from pbd.energy.sensors import Sensor


@dataclass(frozen=True)
class Places:
    """Where Linux shows what is measured."""

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
    """Why there are not more, a line each, with the remedy."""


def find(places: Places | None = None, cores: bool = False) -> DetectedSensors:
    """Return the sensors of this host's GPUs and processors; AMD's registers are read only where there is no RAPL.

    Args:
        places: where to look.
        cores: whether those of physical cores are wanted too, which only AMD's registers have.
    """
    places = places or Places()
    host = host_identity(places.boot_id)
    found = [nvml.find(host), rapl.find(host, places.powercap)]
    if not found[1][0]:
        found.append(amd_msr.find(host, places.msr, places.topology, places.cpuinfo))
    processors = any(sensors for sensors, _ in found[1:])
    notes = [found[0][1], *(complaint for _, complaint in found[1:] if not processors)]
    sensors = tuple(sensor for some, _ in found for sensor in some if cores or sensor.device.kind != "core")
    return DetectedSensors(host, sensors, tuple(complaint for complaint in notes if complaint))


def host_identity(boot_id: Path = Places.boot_id) -> str:
    """Return a name that all processes of a host agree on, those in containers too, and no other host has."""
    try:
        return boot_id.read_text().strip()
    except OSError:
        return platform.node()
