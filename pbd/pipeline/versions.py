"""Versions of the packages that a result may depend on."""

import importlib.metadata

from pbd.system import backend

_DISTRIBUTIONS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "jax": ("jax", "jaxlib"),
    "torch": ("torch",),
}
"""The packages of each backend; only those of the one that computes are named."""


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that the result may depend on."""
    import pbd

    installed = {"pbd": pbd.__version__}
    for package in ("keras", *_DISTRIBUTIONS[backend.name()], "numpy", "h5py", "mpi4py", "binpacking"):
        try:
            installed[package.removesuffix("-cpu")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
