"""NVIDIA's GPUs through NVML, the driver's own library (https://docs.nvidia.com/deploy/nvml-api)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pbd.energy.sensors import Counter, Device, Gauge, Sensor

_RULE = "NVIDIA's GPUs are measured through NVML."


@dataclass(frozen=True)
class Gpu:
    """One GPU of this host; what it is asked raises `OSError` where the driver does not answer."""

    index: int
    nvml: Any
    """The module `pynvml`, initialised."""
    handle: Any

    def energy_mj(self) -> int:
        """Return the millijoules since the driver was loaded; only GPUs from Volta on count them."""
        return self._ask(self.nvml.nvmlDeviceGetTotalEnergyConsumption)

    def power_w(self) -> float:
        """Return the watts drawn now; from Ampere on, the mean of the last second."""
        return self._ask(self.nvml.nvmlDeviceGetPowerUsage) / 1e3

    def busy_percent(self) -> float:
        """Return for how much of the last sample period, a second at most, any kernel ran."""
        return self._ask(self.nvml.nvmlDeviceGetUtilizationRates).gpu

    def memory_bytes(self) -> int:
        """Return the bytes in use, whoever uses them."""
        return self._ask(self.nvml.nvmlDeviceGetMemoryInfo).used

    def sensor(self, host: str) -> Sensor:
        """Return what counts its joules.

        Raises:
            OSError: it tells neither energy nor power.
        """
        device = Device("gpu", str(self.index), "nvml", host, str(self._ask(self.nvml.nvmlDeviceGetUUID)))
        try:
            self.energy_mj()
        except OSError:
            self.power_w()
            return Gauge(device, self.power_w)
        return Counter(device, self.energy_mj, 1e-3)

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self.handle)
        except self.nvml.NVMLError as error:
            raise OSError(str(error)) from error


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that the driver shows to this process, whichever of them CUDA_VISIBLE_DEVICES hides.

    Raises:
        OSError: there is no driver, or no binding to it; the message is one line.
    """
    try:
        import pynvml
    except ImportError as error:
        raise OSError(
            f"{_RULE} Received: no module pynvml. Where there is a GPU: pip install 'pbd[energy]'."
        ) from error
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise OSError(f"{_RULE} Received: {error}. Where there is a GPU: install its driver.") from error
    return tuple(Gpu(index, pynvml, handle) for index, handle in enumerate(handles))


def find(host: str) -> tuple[tuple[Sensor, ...], str | None]:
    """Return what counts each GPU's joules, of all or of none; and why there are none."""
    try:
        present = gpus()
    except OSError as error:
        return (), str(error)
    try:
        sensors = tuple(gpu.sensor(host) for gpu in present)
    except OSError as error:
        return (), f"{_RULE} Received: {error}. Parts of GPUs (MIG, vGPU) are not measured: use whole ones."
    return sensors, None if sensors else f"{_RULE} Received: no GPU. Where there is one: check nvidia-smi."
