"""A run from start to end; `distill.py` reads as the paper's algorithm."""
