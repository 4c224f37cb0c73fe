"""For the tests: a private SSH server, with keys that are generated for it."""

import contextlib
import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S, Process, free_port, wait_until
from tests.helpers.hosts import Host


@dataclass(frozen=True)
class SshServer:
    """One or several SSH servers on the same port and with the same keys; `config` is for `ssh -F`."""

    folder: Path
    addresses: Sequence[str]
    port: int = field(default_factory=free_port)

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def write_files(self) -> None:
        """Generate keys, and write the settings of server and client."""
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", self.folder / name]
            subprocess.run(command, check=True, timeout=PATIENCE_S)
        public = (self.folder / "host.pub").read_text().split(" test")[0]
        (self.folder / "known").write_text("".join(f"[{name}]:{self.port} {public}\n" for name in self.addresses))
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nHostKey {self.folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/user.pub\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
            "Subsystem sftp internal-sftp\n"
        )
        self.config.write_text(
            f"Host *\n  Port {self.port}\n  User {getpass.getuser()}\n  IdentityFile {self.folder}/user\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {self.folder}/known\n  StrictHostKeyChecking yes\n"
        )

    @contextlib.contextmanager
    def listening(self, host: Host, addresses: Sequence[str]) -> Iterator[None]:
        """Run the server on a host; skip the test if it accepts no login."""
        log = self.folder / f"{addresses[0]}.txt"
        listen = [word for address in addresses for word in ("-o", f"ListenAddress={address}")]
        command = [_sshd(), "-D", "-e", "-f", self.folder / "sshd_config", *listen]
        server = Process(host.command(command), log)
        try:
            wait_until(lambda: "listening" in server.said().lower() or not server.running, "SSH server")
            login = ["ssh", "-F", self.config, "-o", "BatchMode=yes", addresses[0], "true"]
            result = subprocess.run(host.command(login), capture_output=True, text=True, timeout=PATIENCE_S)
            if result.returncode != 0:
                pytest.skip(f"the private SSH server accepts no login: {result.stderr.strip()}")
            yield
        finally:
            server.end()


def _sshd() -> str:
    """Return the path of sshd, which must be called by its full path; skip the test without OpenSSH."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("sshd or ssh is absent")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd needs it; the package's service would create it
    return sshd


@contextlib.contextmanager
def ssh_servers(folder: Path, hosts: Sequence[Host], loopback: Sequence[str] = ()) -> Iterator[SshServer]:
    """Run a server on each host, at its address and at the loopback addresses given."""
    _sshd()
    addresses = [*(host.address for host in hosts), *loopback]
    server = SshServer(folder, addresses)
    server.write_files()
    with contextlib.ExitStack() as running:
        for host in hosts:
            running.enter_context(server.listening(host, [host.address, *loopback]))
        yield server
