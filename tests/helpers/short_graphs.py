"""Graphs that run for a few steps only, as in tests: to rewrite one takes longer than to run it."""

UNUSED = (
    "arithmetic_optimization",
    "auto_parallel",
    "common_subgraph_elimination",
    "constant_folding",
    "debug_stripper",
    "dependency_optimization",
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
    "scoped_allocator_optimization",
    "shape_optimization",
)
"""Passes of TensorFlow over a graph before it runs; that which fuses kernels is not among them, since it has faults."""


def rewrite_little() -> None:
    """Let TensorFlow only fuse kernels in the graphs of this process."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options(dict.fromkeys(UNUSED, False))
