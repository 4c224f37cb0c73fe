"""NVIDIA GPUs through NVML, the driver's library (https://docs.nvidia.com/deploy/nvml-api)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pbd.energy.sensors import Counter, Device, Gauge, Sensor

_RULE = "NVIDIA's GPUs are measured through NVML."


@dataclass(frozen=True)
class Gpu:
    """One GPU of this host; its methods raise `OSError` if the driver does not answer."""

    index: int
    nvml: Any
    """The module `pynvml`, initialised."""
    handle: Any

    def energy_mj(self) -> int:
        """Return the millijoules since the driver was loaded; counted by GPUs from Volta on."""
        return self._query(self.nvml.nvmlDeviceGetTotalEnergyConsumption)

    def power_w(self) -> float:
        """Return the present power in watts; from Ampere on, the mean of the last second."""
        return self._query(self.nvml.nvmlDeviceGetPowerUsage) / 1e3

    def busy_percent(self) -> float:
        """Return the percentage of the last sample period (at most a second) in which a kernel ran."""
        return self._query(self.nvml.nvmlDeviceGetUtilizationRates).gpu

    def memory_bytes(self) -> int:
        """Return the bytes in use by all processes."""
        return self._query(self.nvml.nvmlDeviceGetMemoryInfo).used

    def sensor(self, host: str) -> Sensor:
        """Return a counter of its energy, or a gauge of its power if it does not count energy.

        Raises:
            OSError: it reports neither.
        """
        device = Device("gpu", str(self.index), "nvml", host, str(self._query(self.nvml.nvmlDeviceGetUUID)))
        try:
            self.energy_mj()
        except OSError:
            self.power_w()
            return Gauge(device, self.power_w)
        return Counter(device, self.energy_mj, 1e-3)

    def _query(self, function: Callable[[Any], Any]) -> Any:
        try:
            return function(self.handle)
        except self.nvml.NVMLError as error:
            raise OSError(str(error)) from error


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this host that the driver shows, including those that CUDA_VISIBLE_DEVICES hides.

    Raises:
        OSError: there is no driver or no Python binding; the message is one line.
    """
    try:
        import pynvml
    except ImportError as error:
        raise OSError(f"{_RULE} Received: no module pynvml. If there is a GPU: pip install 'pbd[energy]'.") from error
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise OSError(f"{_RULE} Received: {error}. If there is a GPU: install its driver.") from error
    return tuple(Gpu(index, pynvml, handle) for index, handle in enumerate(handles))


def detect(host: str) -> tuple[tuple[Sensor, ...], str | None]:
    """Return the sensors of all GPUs, or none and a note that gives the reason."""
    try:
        present = gpus()
    except OSError as error:
        return (), str(error)
    try:
        sensors = tuple(gpu.sensor(host) for gpu in present)
    except OSError as error:
        return (), f"{_RULE} Received: {error}. Parts of GPUs (MIG, vGPU) are not measured: use whole ones."
    return sensors, None if sensors else f"{_RULE} Received: no GPU. If there is one: check nvidia-smi."
