"""Run pbd on Dask workers, each a Slurm job of its own, started by dask-jobqueue: no wait for one large allocation.

python launch/jobqueue_slurm.py --workers 8 --queue gpu --job-flag=--gpus=1 -- \\
    --teacher my_model.keras --dataset my_data.npz

The scheduler and pbd run here (on a login node, or in a job of their own). Every worker is one Slurm job; pbd starts
when all workers have connected. A worker whose job ends early, at its time limit or with its node, is replaced by a
new job. For PBS, LSF or SGE, copy this file and use the corresponding class of dask-jobqueue.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CERTIFICATES = Path(__file__).resolve().with_name("make_certificates.sh")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the settings for Slurm and, after `--`, the arguments for pbd.

    Example:
        >>> parse(["--workers", "8", "--", "--epochs", "3"])[1]
        ['--epochs', '3']
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description, epilog="Arguments after -- are passed to pbd-run.")
    parser.add_argument("--workers", type=int, default=2, help="Slurm jobs, one worker each (default: 2)")
    parser.add_argument("--queue", help="the partition")
    parser.add_argument("--account", help="the account to charge")
    parser.add_argument("--cores", type=int, default=4, help="CPU cores of each worker (default: 4)")
    parser.add_argument("--memory", default="16GB", help="memory of each worker (default: 16GB)")
    parser.add_argument("--walltime", default="02:00:00", help="time limit of each job (default: 02:00:00)")
    parser.add_argument("--interface", help="network interface that the nodes share (ib0, …)")
    parser.add_argument("--job-flag", action="append", default=[], help="another flag for sbatch; may be repeated")
    parser.add_argument(
        "--shared", type=Path, default=Path.cwd(), help="folder that all nodes share (default: this one)"
    )
    return parser.parse_args(arguments[:split]), list(arguments[split + 1 :])


def cluster_settings(options: argparse.Namespace, tls: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of `SLURMCluster`: a job is one worker with one Dask thread; pbd uses all its cores."""
    return {
        "queue": options.queue,
        "account": options.account,
        "cores": 1,
        "job_cpu": options.cores,
        "processes": 1,
        "memory": options.memory,
        "walltime": options.walltime,
        "interface": options.interface,
        "job_extra_directives": options.job_flag,
        "job_script_prologue": [f"export {name}={shlex.quote(value)}" for name, value in tls.items()],
        "worker_extra_args": ["--memory-limit", "0"],
        "protocol": "tls://",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }


def tls_settings(folder: Path) -> dict[str, str]:
    """Return Dask's settings for the certificates in a folder, as environment variables."""
    prefix = "DASK_DISTRIBUTED__COMM"
    settings = {f"{prefix}__REQUIRE_ENCRYPTION": "true", f"{prefix}__TLS__CA_FILE": str(folder / "ca.pem")}
    for part in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"{prefix}__TLS__{part}__CERT"] = str(folder / "cert.pem")
        settings[f"{prefix}__TLS__{part}__KEY"] = str(folder / "key.pem")
    return settings


def main(arguments: Sequence[str]) -> int:
    """Submit the jobs of the workers, run pbd on them, and cancel them; return the exit code of pbd."""
    options, flags = parse(arguments)
    with tempfile.TemporaryDirectory(prefix=".pbd-dask-", dir=options.shared) as private:
        subprocess.run([CERTIFICATES, Path(private, "tls")], check=True)
        tls = tls_settings(Path(private, "tls"))
        os.environ |= tls  # Dask reads them when it is imported

        from dask_jobqueue import SLURMCluster

        from pbd import run

        with SLURMCluster(**cluster_settings(options, tls)) as cluster:
            cluster.adapt(minimum_jobs=options.workers, maximum_jobs=options.workers)
            cluster.wait_for_workers(options.workers)
            where = ["--executor", "dask", "--dask-address", cluster.scheduler_address]
            return run.main([*where, "--workers", str(options.workers), *flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
