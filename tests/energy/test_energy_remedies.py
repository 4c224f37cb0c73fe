"""Notes on meters that are not there: each remedy is followed in made-up hardware, and the meter is found."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbd import energy
from pbd.energy import SystemPaths, amd_msr, nvml, rapl
from tests.energy.test_energy_detection import Driver, Zone, gpu, make_processor, system_paths
from tests.helpers.ordinary_user import ordinary_user
from tests.helpers.remedies import EXTRAS, in_message

pytestmark = pytest.mark.fast


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Path]:
    """A folder for made-up hardware, read by a user who is not root."""
    with ordinary_user():
        yield tmp_path


def note(detected: tuple[tuple[object, ...], str | None]) -> str:
    """Return the one line that says why nothing was detected."""
    found, message = detected
    assert found == ()
    assert message is not None
    assert "\n" not in message
    return message


def allow(message: str) -> None:
    """Run the `chmod` that a note names, without `sudo`: the made-up hardware is the user's own."""
    command = in_message(r"allow it: sudo (chmod a\+r [^;]*?)(?:;|\.$)", message.replace("Allow", "allow"))
    subprocess.run(["bash", "-c", command], check=True)


def test_the_counters_of_rapl_are_opened(user: Path) -> None:
    for number in range(2):
        (Zone(user, str(number), f"package-{number}").path / "energy_uj").chmod(0)
    message = note(rapl.detect("one", user))
    allow(message)
    assert len(rapl.detect("one", user)[0]) == 2


def amd(paths: SystemPaths) -> tuple[tuple[object, ...], str | None]:
    return amd_msr.detect("one", paths.msr, paths.topology, paths.cpuinfo)


def test_the_registers_of_amd_are_opened(user: Path) -> None:
    paths = system_paths(user, "AuthenticAMD")
    make_processor(paths, {0: ("0", 0), 1: ("1", 0)})
    for number in range(2):
        (paths.msr / str(number) / "msr").chmod(0)
    message = note(amd(paths))
    allow(message)
    assert len(amd(paths)[0]) == 3
    python = Path(in_message(r"; sudo setcap cap_sys_rawio\+ep (.*)\.$", message))
    assert python.is_file()
    assert not python.is_symlink()
    assert python.samefile(sys.executable)


@pytest.mark.parametrize("content", [None, "\n"])
def test_the_driver_of_rapl_is_loaded(user: Path, content: str | None) -> None:
    """The counters of a package are absent, or cannot be read as a number."""
    if content is not None:
        (Zone(user / "powercap", "0", "package-0").path / "energy_uj").write_text(content)
    message = note(rapl.detect("one", user / "powercap"))
    assert in_message(r"oad (?:its|the) driver: sudo modprobe (\w+)", message) == "intel_rapl_msr"
    Zone(user / "loaded", "0", "package-0")
    assert rapl.detect("one", user / "loaded")[0]


def test_the_driver_of_registers_is_loaded(user: Path) -> None:
    paths = system_paths(user, "AuthenticAMD")
    make_processor(paths, {0: ("0", 0)})
    register = paths.msr / "0" / "msr"
    register.rename(user / "kept")
    assert in_message(r"Load their driver: sudo modprobe (\w+)\.", note(amd(paths))) == "msr"
    (user / "kept").rename(register)
    assert amd(paths)[0]


def test_the_binding_of_the_gpu_driver_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    message = note(nvml.detect("one"))
    assert "no module pynvml" in message
    extra = in_message(r"pip install 'pbd\[(\w+)\]'", message)
    assert any(requirement.startswith("nvidia-ml-py") for requirement in EXTRAS[extra])  # has the module pynvml
    present = Driver(gpu("GPU-new", TotalEnergyConsumption=1))
    monkeypatch.setitem(sys.modules, "pynvml", present)
    assert nvml.detect("one")[0]


def test_the_driver_of_a_gpu_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(gpu("GPU-new", TotalEnergyConsumption=1))

    def absent() -> None:
        raise driver.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", driver)
    with monkeypatch.context() as without:
        without.setattr(driver, "nvmlInit", absent)
        assert "Driver Not Loaded. If there is a GPU: install its driver." in note(nvml.detect("one"))
    assert nvml.detect("one")[0]


def test_nothing_is_left_to_say_once_all_is_there(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver(gpu("GPU-new", TotalEnergyConsumption=1)))
    paths = system_paths(user)
    Zone(paths.powercap, "0", "package-0")
    found = energy.detect(paths)
    assert len(found.sensors) == 2
    assert found.notes == ()
