"""Versions of the packages that a result may depend on."""

import importlib.metadata


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that the result may depend on."""
    import pbd

    installed = {"pbd": pbd.__version__}
    for package in ("keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy", "h5py", "mpi4py", "binpacking"):
        try:
            installed[package.removesuffix("-cpu")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
