"""Refit the layers of an assembled student, in order, each on what the student computes before it.

Blocks are fitted to the teacher's feature maps, as if everything before them were the teacher. In the student, errors
add up. A least-squares correction of each convolution, from the first to the last, makes up for a part of those before
it, without a gradient step (the asymmetric reconstruction of Zhang et al. 2016, arXiv:1505.06798, for any block).
"""

from pbd.student.refit.refitting import refit

__all__ = ["refit"]
