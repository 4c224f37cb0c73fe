"""Compression beyond blocks: 8-bit integers, after training or trained for."""
