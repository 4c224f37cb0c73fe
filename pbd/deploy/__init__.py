"""Deployment: inference form, files for other runtimes, 8-bit integers, latency measured and predicted."""
