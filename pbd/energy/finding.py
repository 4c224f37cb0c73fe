"""What of this host can be measured, and why not more."""

import platform
from dataclasses import dataclass
from pathlib import Path

from pbd.energy import amd_msr, nvml, rapl
from pbd.energy.sensors import Dial


@dataclass(frozen=True)
class Places:
    """Where Linux shows what is measured."""

    powercap: Path = Path("/sys/class/powercap")
    msr: Path = Path("/dev/cpu")
    topology: Path = Path("/sys/devices/system/cpu")
    cpuinfo: Path = Path("/proc/cpuinfo")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Finding:
    """The dials of a host."""

    host: str
    dials: tuple[Dial, ...] = ()
    complaints: tuple[str, ...] = ()
    """Why there are not more, a line each, with the remedy."""


def find(places: Places | None = None, cores: bool = False) -> Finding:
    """Return the dials of this host's GPUs and processors; AMD's registers are read only where there is no RAPL.

    Args:
        places: where to look.
        cores: whether those of physical cores are wanted too, which only AMD's registers have.
    """
    places = places or Places()
    host = host_identity(places.boot_id)
    found = [nvml.find(host), rapl.find(host, places.powercap)]
    if not found[1][0]:
        found.append(amd_msr.find(host, places.msr, places.topology, places.cpuinfo))
    processors = any(dials for dials, _ in found[1:])
    complaints = [found[0][1], *(complaint for _, complaint in found[1:] if not processors)]
    dials = tuple(dial for some, _ in found for dial in some if cores or dial.device.kind != "core")
    return Finding(host, dials, tuple(complaint for complaint in complaints if complaint))


def host_identity(boot_id: Path = Places.boot_id) -> str:
    """Return a name that all processes of a host agree on, those in containers too, and no other host has."""
    try:
        return boot_id.read_text().strip()
    except OSError:
        return platform.node()
