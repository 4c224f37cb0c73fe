"""The training engine: loops, optimiser, data parallelism, losses, metrics."""
