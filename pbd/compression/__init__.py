"""Compression steps, each on its own or in a recipe: blocks, pruning, fine-tuning, distillation, 8-bit integers."""
