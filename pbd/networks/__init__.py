"""Keras graphs, read and rewritten; knows no block design."""
