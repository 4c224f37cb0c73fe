"""The scripts for MPI: with MPICH on this machine, and with Open MPI on two hosts, one of which is lost."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import short_latencies
from tests.helpers.cluster import LAUNCH, Process, environment, wait_until
from tests.helpers.hosts import Host, cut_link, mend_link, several_hosts
from tests.helpers.launching import DIGITS, QUICK, assert_done, finished_blocks, run_to_its_end
from tests.helpers.ssh import ssh_servers

pytestmark = pytest.mark.launch
OPEN_MPI = shutil.which("mpirun.openmpi")
LOST_DAEMON = 205
"""The exit code of Open MPI's mpirun after it has lost a host."""
WRAPPER = """#!/bin/sh
# Python as it would be on a host where Open MPI is the only MPI.
export PYTHONPATH="{paths}" MPI4PY_MPIABI=openmpi TF_CPP_MIN_LOG_LEVEL=3
exec "{python}" "$@"
"""


def test_local_mpi(folder: Path, played: dict[str, str]) -> None:
    process = run_to_its_end(folder, LAUNCH / "local_mpi.sh", "2", *QUICK, **played)
    assert_done(process, folder / "my run", workers=2)


def test_multi_node_mpi_with_a_hostfile(folder: Path, played: dict[str, str]) -> None:
    (folder / "my hosts").write_text("localhost:2\n")
    process = run_to_its_end(folder, LAUNCH / "multi_node_mpi.sh", "my hosts", *QUICK, **played)
    assert_done(process, folder / "my run", workers=2)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[tuple[list[Host], dict[str, str]]]:
    """Two hosts that reach each other by SSH and, in an environment with these changes, by Open MPI over TCP."""
    if OPEN_MPI is None:
        pytest.skip("Open MPI (openmpi-bin) is absent")
    python, keys = tmp_path / "python", tmp_path / "ssh"
    python.write_text(WRAPPER.format(paths=short_latencies.PATHS, python=sys.executable))
    python.chmod(0o755)
    keys.mkdir()
    with several_hosts(2) as hosts, ssh_servers(keys, hosts) as server:
        yield hosts, _open_mpi(OPEN_MPI, python, server.config)


def _open_mpi(mpirun: str, python: Path, ssh_config: Path) -> dict[str, str]:
    settings = {
        "plm_rsh_agent": f"ssh -F {ssh_config}",
        "btl": "tcp,self",  # the hosts are one machine, but no memory may be shared
        "btl_tcp_if_include": "eth0",
        "oob_tcp_if_include": "eth0",
        "oob_tcp_keepalive_time": "3",
        "oob_tcp_keepalive_intvl": "2",
        "oob_tcp_keepalive_probes": "2",
    }
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    mca = {f"OMPI_MCA_{name}": value for name, value in settings.items()}
    return {"PBD_PYTHON": str(python), "PBD_MPIRUN": mpirun, **root, **mca}


def test_open_mpi_loses_a_host_and_the_run_resumes(folder: Path, two_hosts: tuple[list[Host], dict[str, str]]) -> None:
    """The digits job on two hosts: the cable of one is pulled after the first block."""
    hosts, changes = two_hosts
    (folder / "my hosts").write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    script = hosts[0].command([LAUNCH / "multi_node_mpi.sh", "my hosts", *DIGITS, "--run-dir", "my run"])
    run_dir = folder / "my run"
    process = Process(script, folder / "first.txt", environment(**changes), cwd=folder)
    try:
        wait_until(lambda: finished_blocks(run_dir), "first block", [process])
        cut_link(hosts[1])
        assert process.wait(60) == LOST_DAEMON, process.said()
    finally:
        process.end()
    assert "lost communication with a remote daemon" in process.said()
    mend_link(hosts[1])
    assert_done(run_to_its_end(folder, *script, "--resume", **changes), run_dir, workers=2)
