"""Stand-ins for what tests should not need: a teacher, a device, a long run."""

import time
from collections.abc import Callable

from pbd.energy.sensors import Counter, Device
from pbd.records import BlockKey, BlockTask, Layer


def make_task(
    index: int,
    prefix_macs: int = 1_000,
    layer_macs: int = 900,
    block_macs: int = 200,
    layer_name: str | None = None,
    skip_reason: str | None = None,
    design: str = "two_layer",
) -> BlockTask:
    """Return a plausible 3x3 layer task; it is called `conv<index>` unless a name is given."""
    layer = Layer(
        index=index,
        name=layer_name or f"conv{index}",
        kernel_size=(3, 3),
        strides=(1, 1),
        dilation_rate=(1, 1),
        padding="same",
        activation="linear",
        input_shape=(8, 8, 16),
        output_shape=(8, 8, 16),
        prefix_macs=prefix_macs,
        macs=layer_macs,
        params=2_320,
    )
    return BlockTask(layer, design, macs=block_macs, params=400, skip_reason=skip_reason)


def key(layer: str, design: str = "two_layer") -> BlockKey:
    """Return the key of the task that `make_task` makes for this layer."""
    return BlockKey(layer, design)


def steady(watts: float, host: str, kind: str = "package", gone: Callable[[], object] = lambda: False) -> Counter:
    """Return a sensor that always shows the same power, until it is gone."""

    def read() -> int:
        if gone():
            raise OSError("the device has fallen off the bus")
        return int(1e6 * watts * time.monotonic())

    source = "rapl" if kind == "package" else "nvml"
    return Counter(Device(kind, "0", source, host, f"{host}/{kind}-0"), read, 1e-6)
