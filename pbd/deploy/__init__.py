"""Deployment of the student: inference form and latency."""
