"""The scripts that start Dask workers by SSH, on loopback addresses through a private SSH server."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import LAUNCH, Process, environment, free_port, needs_openssl, processes_with, wait_until
from tests.helpers.hosts import Host
from tests.helpers.launching import LONGER, QUICK, assert_done, finished_blocks, run_to_its_end
from tests.helpers.ssh import SshServer, ssh_servers

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An SSH server on a free port of two loopback addresses."""
    with ssh_servers(tmp_path_factory.mktemp("sshd"), [Host()], ["127.0.0.2"]) as server:
        yield server


@needs_openssl
def test_dask_over_ssh(folder: Path, played: dict[str, str], ssh_server: SshServer) -> None:
    changes = {"PBD_SSH_CONFIG": str(ssh_server.config), "PBD_INTERFACE": "lo", **played}
    process = run_to_its_end(folder, LAUNCH / "dask_ssh.sh", "127.0.0.1,127.0.0.2", *QUICK, **changes)
    assert_done(process, folder / "my run", workers=2)
    assert sorted(path.name for path in folder.iterdir()) == ["my run", "output.txt"], "the certificates are left"


@needs_openssl
def test_a_list_of_hosts_that_is_stopped_and_started_again(
    folder: Path, played: dict[str, str], ssh_server: SshServer
) -> None:
    port = free_port()
    (folder / "my hosts").write_text("127.0.0.1\n127.0.0.2  # both are this machine\n")
    command = [LAUNCH / "chameleon.sh", "my hosts", *LONGER, "--run-dir", "my run"]
    changes = {"PBD_SSH_CONFIG": str(ssh_server.config), "PBD_PORT": str(port), "PBD_DIRECTORY": str(folder), **played}
    before = set(Path("/tmp").glob("pbd-*"))
    process = Process(command, folder / "first.txt", environment(**changes), cwd=folder)
    try:
        wait_until(lambda: finished_blocks(folder / "my run"), "first block", [process])
        process.signal(signal.SIGTERM)
        assert process.wait() == 75, process.said()
    finally:
        process.end()
    wait_until(lambda: not processes_with(f"127.0.0.1:{port}"), "end of all that was started by SSH")
    assert_done(run_to_its_end(folder, *command, "--resume", **changes), folder / "my run", workers=2)
    wait_until(lambda: not processes_with(f"127.0.0.1:{port}"), "end of all that was started by SSH")
    assert set(Path("/tmp").glob("pbd-*")) <= before, "the certificates are left on the hosts"


@needs_openssl
def test_a_host_that_lets_nobody_in_is_said_at_once(folder: Path, ssh_server: SshServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.3", 0))
        changes = {"PBD_SSH_CONFIG": str(ssh_server.config), "PBD_DIRECTORY": str(folder)}
        process = run_to_its_end(folder, LAUNCH / "chameleon.sh", "127.0.0.3", *QUICK, **changes)
    assert process.wait() == 255
    assert "127.0.0.3" in process.said()
