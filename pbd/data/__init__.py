"""Images for a run: load a dataset, split it, and feed it as batches that depend on the seed alone.

data = load(DataConfig(dataset="digits"), seed=0)
for images, labels in data.training_batches(first_epoch=0, end_epoch=1): ...
"""

from pbd.data.data import ARRAYS, Data, check_data
from pbd.data.dataset import Dataset
from pbd.data.loading import absolute, known_names, load
from pbd.data.order import WHOLE, WorkerShare
from pbd.data.splits import IndexedSplit, Split, StreamSplit

__all__ = [
    "ARRAYS",
    "WHOLE",
    "Data",
    "Dataset",
    "IndexedSplit",
    "Split",
    "StreamSplit",
    "WorkerShare",
    "absolute",
    "check_data",
    "known_names",
    "load",
]
