"""Programs of the tests that import Keras without pbd, in half the time."""

HIDE_OPTIONAL = 'import sys; sys.modules |= dict.fromkeys(("jax", "matplotlib", "scipy", "sklearn"))\n'
"""For the start of a program: Keras imports these packages where it finds them, and works without them."""
