"""AMD processors through their model-specific registers, as in the paper; each counts with 32 bits.

A physical core's register can be read from any of its hardware threads, a package's from any of its cores.
Source: Processor Programming Reference for AMD family 17h, and https://docs.kernel.org/6.1/hwmon/amd_energy.html
"""

import os
import sys
from functools import partial
from pathlib import Path

from pbd.energy.sensors import Counter, Device

UNIT, CORE, PACKAGE = 0xC0010299, 0xC001029A, 0xC001029B
COUNTS = 2**32
_RULE = "AMD's processors are measured through their registers."


def detect(host: str, msr: Path, topology: Path, cpuinfo: Path) -> tuple[tuple[Counter, ...], str | None]:
    """Return a counter for each package and each physical core, or none and a note that gives the reason.

    Args:
        host: the identity of the host.
        msr: /dev/cpu, where `N/msr` contains the registers of the logical processor N.
        topology: /sys/devices/system/cpu, which maps hardware threads to cores and packages.
        cpuinfo: /proc/cpuinfo, which names the vendor; for other vendors there is no note.
    """
    if not _is_amd(cpuinfo):
        return (), None
    try:
        counters = _counters(host, msr, topology)
    except PermissionError as error:
        python = os.path.realpath(sys.executable)  # setcap takes no link
        remedy = f"Run as root, or allow it: sudo chmod a+r {msr}/*/msr; sudo setcap cap_sys_rawio+ep {python}."
        return (), f"{_RULE} Received: {error.filename} may not be read. {remedy}"
    except FileNotFoundError as error:
        return (), f"{_RULE} Received: no {error.filename}. Load their driver: sudo modprobe msr."
    except (OSError, ValueError) as error:
        remedy = "Processors from family 17h (Zen) on have them; most virtual machines do not show them."
        return (), f"{_RULE} Received: {error}. {remedy}"
    return counters, None


def _is_amd(cpuinfo: Path) -> bool:
    try:
        return "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _counters(host: str, msr: Path, topology: Path) -> tuple[Counter, ...]:
    cores, packages = _processors(topology)

    def counter(kind: str, number: int, cpu: int, register: int) -> Counter:
        device = Device(kind, str(number), "amd_msr", host, f"{host}/{kind}-{number}")
        path = msr / str(cpu) / "msr"
        unit_j = 0.5 ** (read_register(path, UNIT) >> 8 & 0x1F)  # bits 12:8: energy status units
        _count(path, register)  # raises if the processor has no such register
        return Counter(device, partial(_count, path, register), unit_j, COUNTS)

    return (
        *(counter("package", package, cpu, PACKAGE) for package, cpu in sorted(packages.items())),
        *(counter("core", cpu, cpu, CORE) for cpu in sorted(cores)),
    )


def _processors(topology: Path) -> tuple[set[int], dict[int, int]]:
    """Return the first logical processor of each core, and of each package by its number."""
    cores, packages = set[int](), dict[int, int]()
    for threads in topology.glob("cpu[0-9]*/topology/thread_siblings_list"):
        first = int(threads.read_text().replace("-", ",").split(",")[0])
        cores.add(first)
        package = int((threads.parent / "physical_package_id").read_text())
        packages[package] = min(first, packages.get(package, first))
    if not packages:
        raise ValueError(f"no processors under {topology}")
    return cores, packages


def _count(path: Path, register: int) -> int:
    return read_register(path, register) % COUNTS


def read_register(path: Path, register: int) -> int:
    """Return the 64 bits of a register.

    Raises:
        OSError: the processor has no such register, or this user may not read it.
        ValueError: the file is not one of a processor's registers.
    """
    with path.open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), 8, register)
    if len(content) != 8:
        raise ValueError(f"no register {register:#x} in {path}")
    return int.from_bytes(content, "little")
