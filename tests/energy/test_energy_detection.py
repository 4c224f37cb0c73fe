"""Meters found in made-up hardware: RAPL's zones, AMD's registers, NVIDIA's driver; and what is said without."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pbd import energy
from pbd.energy import SystemPaths, amd_msr, detection, nvml, rapl

pytestmark = pytest.mark.fast

RANGE_UJ = 65_532_610_987
"""What a Xeon gives as max_energy_range_uj."""


class Zone:
    """A package in a made-up /sys/class/powercap."""

    def __init__(self, powercap: Path, number: str, name: str, energy_uj: int = 0) -> None:
        self.path = powercap / f"intel-rapl:{number}"
        self.path.mkdir(parents=True)
        (self.path / "name").write_text(f"{name}\n")
        (self.path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        self.show(energy_uj)

    def show(self, energy_uj: int) -> None:
        (self.path / "energy_uj").write_text(f"{energy_uj % RANGE_UJ}\n")


def system_paths(root: Path, maker: str = "GenuineIntel") -> SystemPaths:
    (root / "cpuinfo").write_text(f"processor : 0\nvendor_id : {maker}\n")
    (root / "boot_id").write_text("d1ce\n")
    return SystemPaths(root / "powercap", root / "msr", root / "topology", root / "cpuinfo", root / "boot_id")


def test_only_packages_are_counted_not_their_parts_nor_the_platform(tmp_path: Path) -> None:
    at = system_paths(tmp_path)
    near_the_end = Zone(at.powercap, "0", "package-0", RANGE_UJ - 1_000_000)
    second = Zone(at.powercap, "1", "package-1")
    others = [Zone(at.powercap, number, name) for number, name in (("0:0", "core"), ("1:0", "dram"), ("2", "psys"))]
    meter = energy.Meter(energy.detect(at))
    near_the_end.show(RANGE_UJ + 2_000_000)
    for zone in (second, *others):
        zone.show(7_000_000)
    reading = meter.read()
    assert reading.total_j == pytest.approx(10.0)
    assert [trace.device.name for trace in reading.traces] == ["package-0", "package-1"]
    assert reading.source == "rapl"


def test_workers_that_each_found_the_hosts_meters_count_it_once(
    tmp_path: Path, gpus: tuple[dict[str, Any], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = system_paths(tmp_path)
    zone = Zone(at.powercap, "0", "package-0")
    meters = [energy.Meter(energy.detect(at))]
    monkeypatch.setitem(sys.modules, "pynvml", Driver(gpus[0]))  # the second sees fewer, and numbers them anew
    meters.append(energy.Meter(energy.detect(at)))
    zone.show(5_000_000)
    gpus[0]["nvmlDeviceGetTotalEnergyConsumption"] = 18_000
    sent = [pickle.loads(pickle.dumps(meter.read())) for meter in meters]
    assert [reading.by_kind_j["package"] for reading in sent] == pytest.approx([5.0, 5.0])
    together = energy.merge(sent)
    assert together.by_kind_j["package"] == pytest.approx(5.0)
    assert [trace.total_j for trace in together.traces if trace.device.identity == "GPU-new"] == pytest.approx([8.0])
    assert (together.hosts, len(together.traces)) == (("d1ce",), 3)


def test_a_package_that_disappears_is_reported(tmp_path: Path) -> None:
    at = system_paths(tmp_path)
    zone = Zone(at.powercap, "0", "package-0")
    meter = energy.Meter(energy.detect(at))
    zone.show(4_000_000)
    meter.sample()
    (zone.path / "energy_uj").unlink()
    reading = meter.read()
    assert reading.total_j == pytest.approx(4.0)
    assert reading.partial
    assert "package-0 (rapl): lost" in reading.faults[0]


def make_processor(at: SystemPaths, cores: dict[int, tuple[str, int]]) -> None:
    """Make up a processor: for each logical one its siblings and its package, and a file that holds all registers."""
    for cpu, (siblings, package) in cores.items():
        topology = at.topology / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
        (topology / "physical_package_id").write_text(f"{package}\n")
        path = at.msr / str(cpu) / "msr"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(2**32)


def test_amd_registers_are_read_once_per_core_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = system_paths(tmp_path, "AuthenticAMD")
    make_processor(at, {0: ("0,2", 0), 1: ("1,3", 0), 2: ("0,2", 0), 3: ("1,3", 0), 4: ("4-5", 1), 5: ("4-5", 1)})
    registers = {("0", amd_msr.PACKAGE): 2**32 - 65_536}

    def read(path: Path, register: int) -> int:
        return 0xA1003 if register == amd_msr.UNIT else 2**40 | registers.get((path.parent.name, register), 0)

    monkeypatch.setattr(amd_msr, "read_register", read)
    meter = energy.Meter(energy.detect(at, cores=True))
    registers[("0", amd_msr.PACKAGE)] = 65_536
    registers[("4", amd_msr.PACKAGE)] = 3 * 65_536
    registers[("1", amd_msr.CORE)] = 32_768
    registers[("3", amd_msr.CORE)] = 32_768
    reading = meter.read()
    names = [trace.device.name for trace in reading.traces]
    assert names == ["package-0", "package-1", "core-0", "core-1", "core-4"]
    assert reading.by_kind_j == pytest.approx({"package": 5.0, "core": 0.5})
    assert (reading.total_j, reading.source) == (pytest.approx(5.0), "amd_msr")


def test_a_register_is_eight_bytes_at_its_number(tmp_path: Path) -> None:
    path = tmp_path / "msr"
    with path.open("wb") as file:
        file.seek(amd_msr.PACKAGE)
        file.write((2**40 + 77).to_bytes(8, "little"))
    assert amd_msr.read_register(path, amd_msr.PACKAGE) == 2**40 + 77
    with pytest.raises(ValueError, match="no register"):
        amd_msr.read_register(path, amd_msr.PACKAGE + 8)


def test_amd_registers_are_left_alone_where_there_is_rapl(tmp_path: Path) -> None:
    at = system_paths(tmp_path, "AuthenticAMD")
    make_processor(at, {0: ("0", 0)})
    Zone(at.powercap, "0", "package-0")
    assert [sensor.device.source for sensor in energy.detect(at).sensors] == ["rapl"]


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let nobody read files of this name, root included."""
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.usefixtures("no_gpu")
def test_what_may_not_be_read_is_said_in_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = system_paths(tmp_path, "AuthenticAMD")
    Zone(at.powercap, "0", "package-0")
    make_processor(at, {0: ("0", 0)})
    forbid(monkeypatch, "energy_uj")
    assert [sensor.device.source for sensor in energy.detect(at).sensors] == ["amd_msr"]
    forbid(monkeypatch, "msr")
    found = energy.detect(at)
    assert not found.sensors
    _, of_rapl, of_registers = found.notes
    assert "chmod a+r" in of_rapl
    assert "energy_uj" in of_rapl
    assert "as root" in of_registers
    assert not any("\n" in line for line in found.notes)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("maker", "remedies"),
    [
        ("GenuineIntel", ("pip install 'pbd[energy]'", "modprobe intel_rapl_msr")),
        ("AuthenticAMD", ("pip install 'pbd[energy]'", "modprobe intel_rapl_msr", "modprobe msr")),
    ],
)
def test_what_is_absent_is_said_in_a_line_each(tmp_path: Path, maker: str, remedies: tuple[str, ...]) -> None:
    at = system_paths(tmp_path, maker)
    make_processor(at, {0: ("0", 0)})
    (at.msr / "0" / "msr").unlink()
    with energy.measure(energy.detect(at)) as meter:
        pass
    reading = meter.read()
    assert (reading.source, reading.total_j, reading.partial) == ("none", None, False)
    assert len(reading.notes) == len(remedies)
    for line, remedy in zip(reading.notes, remedies, strict=True):
        assert remedy in line
        assert "Received: " in line
        assert "\n" not in line


def test_one_package_that_cannot_be_read_leaves_none(tmp_path: Path) -> None:
    Zone(tmp_path, "0", "package-0")
    (Zone(tmp_path, "1", "package-1").path / "energy_uj").write_text("\n")
    found, complaint = rapl.detect("one", tmp_path)
    assert found == ()
    assert complaint is not None


class Driver:
    """What of pynvml is used; what a GPU does not know, it does not say."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: dict[str, Any]) -> None:
        self.gpus = gpus

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.gpus[index]

    def __getattr__(self, name: str) -> Callable[[dict[str, Any]], Any]:
        def ask(gpu: dict[str, Any]) -> Any:
            if name not in gpu:
                raise self.NVMLError("Not Supported")
            return gpu[name]

        return ask


def gpu(uuid: str, **said: Any) -> dict[str, Any]:
    return {"nvmlDeviceGetUUID": uuid} | {f"nvmlDeviceGet{name}": value for name, value in said.items()}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], ...]:
    """A GPU that counts its energy, and an old one that only shows power."""
    pair = gpu("GPU-new", TotalEnergyConsumption=10_000), gpu("GPU-old", PowerUsage=250_000)
    monkeypatch.setitem(sys.modules, "pynvml", Driver(*pair))
    return pair


def test_gpus_count_or_show_power(gpus: tuple[dict[str, Any], ...]) -> None:
    moments = iter([0.0, 1.0, 3.0])
    found, complaint = nvml.detect("one")
    meter = energy.Meter(energy.DetectedSensors("one", found), moments.__next__)
    gpus[0]["nvmlDeviceGetTotalEnergyConsumption"] = 70_000
    gpus[1]["nvmlDeviceGetPowerUsage"] = 350_000
    meter.sample()
    reading = meter.read()
    assert [trace.total_j for trace in reading.traces] == pytest.approx([60.0, 300.0 + 700.0])
    assert [trace.device.identity for trace in reading.traces] == ["GPU-new", "GPU-old"]
    assert complaint is None


def test_a_gpu_that_falls_off_the_bus(gpus: tuple[dict[str, Any], ...]) -> None:
    meter = energy.Meter(energy.DetectedSensors("one", nvml.detect("one")[0][:1]))
    del gpus[0]["nvmlDeviceGetTotalEnergyConsumption"]
    reading = meter.read()
    assert reading.partial
    assert "gpu-0 (nvml): lost" in reading.faults[0]


@pytest.mark.parametrize(("driver", "said"), [(Driver(), "no GPU"), (Driver(gpu("GPU-part")), "Not Supported")])
def test_gpus_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, driver: Driver, said: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    found, complaint = nvml.detect("one")
    assert found == ()
    assert said in str(complaint)


def test_a_gpu_is_asked_for_its_load() -> None:
    loads = {"UtilizationRates": SimpleNamespace(gpu=37), "MemoryInfo": SimpleNamespace(used=2**30)}
    one = nvml.Gpu(0, driver := Driver(gpu("GPU-0", **loads)), driver.gpus[0])
    assert (one.busy_percent(), one.memory_bytes()) == (37, 2**30)
    with pytest.raises(OSError, match="Not Supported"):
        one.power_w()


def test_a_host_is_known_by_its_boot(tmp_path: Path) -> None:
    at = system_paths(tmp_path)
    assert detection.host_identity(at.boot_id) == "d1ce"
    assert detection.host_identity(tmp_path / "absent") == os.uname().nodename
