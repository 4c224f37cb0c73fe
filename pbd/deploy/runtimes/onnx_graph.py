"""The constants of an ONNX graph, and what its nodes read."""

from collections import Counter
from typing import Any

import numpy as np


def constants(graph: Any) -> dict[str, np.ndarray]:
    """Return the constants of a graph by name."""
    import onnx

    return {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}


def reads(graph: Any) -> Counter[str]:
    """Return how often each tensor is read: by nodes, by the branches that nodes hold, and as an output."""
    counts = Counter(output.name for output in graph.output)
    for node in graph.node:
        counts.update(node.input)
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs):
                counts.update(reads(branch))
    return counts


def replace_constants(graph: Any, added: dict[str, np.ndarray]) -> None:
    """Add constants, and remove those that nothing reads any more: ONNX Runtime warns of them."""
    import onnx

    read = reads(graph)
    kept = [each for each in graph.initializer if read[each.name]]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(onnx.numpy_helper.from_array(value, name) for name, value in added.items())])
