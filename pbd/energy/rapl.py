"""Processor packages of Intel and AMD through RAPL, which Linux shows under /sys/class/powercap.

A zone `intel-rapl:N` is a package or the whole platform (`psys`), which includes the packages; `intel-rapl:N:M` is a
part of a package, or its memory. Only packages are counted.
Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from functools import partial
from pathlib import Path

from pbd.energy.sensors import Counter, Device

JOULES_PER_COUNT = 1e-6
_RULE = "Processors are measured through RAPL."


def detect(host: str, powercap: Path) -> tuple[tuple[Counter, ...], str | None]:
    """Return a counter for each processor package, or none and a note that gives the reason.

    Args:
        host: the identity of the host.
        powercap: /sys/class/powercap.
    """
    zones = sorted(zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1)
    try:
        counters = tuple(_counter(zone, name, host) for zone in zones if (name := _name(zone)).startswith("package"))
    except PermissionError as error:
        remedy = f"Allow it: sudo chmod a+r {powercap}/intel-rapl:*/energy_uj."
        return (), f"{_RULE} Received: {error.filename} may not be read. {remedy}"
    except (OSError, ValueError) as error:
        return (), f"{_RULE} Received: {error}. Reload the driver: sudo modprobe intel_rapl_msr."
    if not counters:
        remedy = "Load its driver: sudo modprobe intel_rapl_msr; virtual machines and most containers have none."
        return (), f"{_RULE} Received: no package under {powercap}. {remedy}"
    return counters, None


def _name(zone: Path) -> str:
    return (zone / "name").read_text().strip()


def _counter(zone: Path, name: str, host: str) -> Counter:
    device = Device("package", name.removeprefix("package-"), "rapl", host, f"{host}/{name}")
    counts = _read_int(zone / "max_energy_range_uj") or None
    _read_int(zone / "energy_uj")  # raises if this user may not read it
    return Counter(device, partial(_read_int, zone / "energy_uj"), JOULES_PER_COUNT, counts)


def _read_int(path: Path) -> int:
    return int(path.read_text())
