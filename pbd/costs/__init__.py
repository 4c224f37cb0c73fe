"""Prediction of the time and memory of training."""
