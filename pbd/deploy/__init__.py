"""The student where it serves: inference form and latency."""
