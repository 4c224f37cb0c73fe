"""pbd: make trained Keras CNNs smaller by parallel blockwise distillation.

`distill` compresses a network, and `compress` applies several steps in a row, such as `PruneFilters` and `Quantize`.
`export`, `quantize` and `measure_latency` are for networks in other runtimes; `analyse` compares a compressed network
with the original. `Data` holds the images. Names are imported when they are first used.
"""

import importlib
from typing import Any

from pbd.system import backend as _backend

__version__ = "0.2.0"

_HOMES = {
    "analyse": "pbd.analysis.comparison",
    "distill": "pbd.pipeline.api",
    "export": "pbd.deploy.exporting",
    "quantize": "pbd.compression.quantization",
    "compress": "pbd.compression.api",
    "measure_latency": "pbd.deploy.latency",
    "Result": "pbd.pipeline.api",
    "Compressed": "pbd.compression.api",
    "Exported": "pbd.deploy.exporting",
    "Quantized": "pbd.deploy.int8.quantizing",
    "ModelLatency": "pbd.deploy.latency",
    "Craft": "pbd.compression.craft",
    "DistillInto": "pbd.compression.distill_into",
    "Ensemble": "pbd.compression.ensemble",
    "Feature": "pbd.config",
    "FineTune": "pbd.compression.fine_tune",
    "Progressive": "pbd.compression.progressive",
    "PruneFilters": "pbd.compression.prune_filters",
    "PruneWeights": "pbd.compression.prune_weights",
    "Quantize": "pbd.compression.quantize",
    "ReplaceBlocks": "pbd.compression.replace_blocks",
    "Data": "pbd.data",
    "RunConfig": "pbd.config",
    "RunReport": "pbd.records",
    "BlockResult": "pbd.records",
    "BlockTask": "pbd.records",
    "Assignment": "pbd.records",
    "PbdError": "pbd.errors",
}
__all__ = sorted([*_HOMES, "__version__"])

_backend.choose()  # before any module of pbd imports Keras, which fails if its default backend is not installed


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pbd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
