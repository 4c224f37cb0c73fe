"""Packaging of pbd: a small core, with the backend and the engines as extras."""

from pathlib import Path

from setuptools import find_packages, setup

CPU = ["tensorflow-cpu>=2.21,<2.22"]
GPU = ["tensorflow[and-cuda]>=2.21,<2.22", "nvidia-ml-py>=12"]
MPI = ["mpi4py>=4.1", "mpich>=5.0"]
DASK = ["dask[distributed]>=2026.8"]
ENERGY = ["nvidia-ml-py>=12"]
EXPORT = ["onnx>=1.20", "tf2onnx>=1.17", "onnxruntime>=1.23"]
EXPERIMENTS = ["matplotlib>=3.9", "psutil>=6", "scipy>=1.14"]
DEV = ["pytest>=8", "dask-jobqueue>=0.9", "pytest-xdist>=3.6", "ruff>=0.9", *EXPERIMENTS, *EXPORT]

setup(
    name="pbd",
    version="0.1.0",
    description="Make trained Keras CNNs small and fast by parallel blockwise distillation",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["pbd", "pbd.*"]),
    package_data={"pbd.report": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "keras>=3.15.1,<3.16",
        "numpy>=1.26",
        "h5py>=3.11",
        "binpacking>=2.0.1",
        "scikit-learn>=1.5",
        "threadpoolctl>=3.5",
        "tyro>=1.0",
        "rich>=14",
        "jinja2>=3.1",
        "cloudpickle>=3",
    ],
    extras_require={
        "cpu": CPU,
        "gpu": GPU,
        "mpi": MPI,
        "dask": DASK,
        "energy": ENERGY,
        "export": EXPORT,
        "experiments": EXPERIMENTS,
        "dev": DEV,
        "all": [*CPU, *MPI, *DASK, *ENERGY, *DEV],
    },
    entry_points={
        "console_scripts": [
            "pbd-run=pbd.run:command",
            "pbd-status=pbd.status:main",
            "pbd-report=pbd.report.__main__:main",
        ]
    },
)
