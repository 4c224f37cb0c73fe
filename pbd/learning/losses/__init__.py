"""Losses: of a student on its teacher's logits and feature maps and on the labels, and of a block."""

from pbd.learning.losses.block import squared_error
from pbd.learning.losses.logits import Loss, cross_entropy, kd_kl, kd_mse, make_loss

__all__ = ["Loss", "cross_entropy", "kd_kl", "kd_mse", "make_loss", "squared_error"]
