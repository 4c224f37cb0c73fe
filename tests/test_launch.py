"""Every launch script runs here as far as one machine allows: local MPI, a private SSH server, a played Slurm."""

import getpass
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import played_run
from tests.helpers.cluster import (
    LAUNCH,
    PATIENCE_S,
    Process,
    environment,
    free_port,
    processes_with,
    report_of,
    wait_until,
    without_backend,
)

PLAIN = ["chameleon", "dask_ssh", "local_mpi", "make_certificates", "multi_node_mpi"]
SLURM = ["slurm_dask", "slurm_mpi"]
QUICK = ["--epochs", "1", "--no-isolate", "--run-dir", "my run"]
LONGER = ["--epochs", "3", "--no-group", "--no-isolate"]
"""Something to do that can be stopped in the middle: the blocks one by one, about a second each."""
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is absent")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Changes of the environment by which a launch script starts played runs."""
    wrapper = played_run.python_wrapper(tmp_path_factory.mktemp("played python"))
    return {"PBD_PYTHON": str(wrapper), "PBD_MPIRUN": str(Path(sys.executable).parent / "mpirun")}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with spaces in its name; after the test nothing may run that knows it."""
    folder = tmp_path / "with spaces, é"
    folder.mkdir()
    yield folder
    wait_until(lambda: not processes_with(str(tmp_path)), f"end of {processes_with(str(tmp_path))}")


def run_to_its_end(folder: Path, *command: str | Path, **changes: str) -> Process:
    """Run a command in the folder; whatever happens, nothing of it is left."""
    process = Process(command, folder / "output.txt", environment(**changes), cwd=folder)
    try:
        process.wait()
    finally:
        process.end()
    return process


def assert_done(process: Process, run_dir: Path, workers: int) -> None:
    assert process.wait() == 0, process.said()
    report = report_of(run_dir)
    assert {row["status"] for row in report["blocks"]} == {"accepted"}
    assert len(report["workers"]) == workers


def finished_blocks(run_dir: Path) -> list[Path]:
    return list((run_dir / "blocks").glob("*.npz"))


# --- what needs no TensorFlow ---


@pytest.mark.fast
def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is absent")
    scripts = sorted(LAUNCH.glob("*.sh"))
    told = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=PATIENCE_S)
    assert told.returncode == 0, told.stdout


@pytest.mark.fast
def test_scripts_are_strict_and_only_they_are_executable() -> None:
    scripts = {path.stem: path for path in LAUNCH.glob("*.sh")}
    assert sorted(name for name, path in scripts.items() if os.access(path, os.X_OK)) == sorted(PLAIN + SLURM)
    for name in PLAIN + SLURM:
        text = scripts[name].read_text(encoding="utf-8")
        assert text.startswith("#!/usr/bin/env bash\n"), name
        assert "\nset -euo pipefail\n" in text, name


@pytest.mark.fast
@pytest.mark.parametrize("name", PLAIN)
def test_help_is_the_comment_at_the_top(name: str) -> None:
    script = LAUNCH / f"{name}.sh"
    asked = subprocess.run([script, "-h"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert f"launch/{name}.sh" in asked.stdout
    assert "set -euo" not in asked.stdout
    silent = subprocess.run([script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (silent.returncode, silent.stdout) == (2, "")
    assert silent.stderr == asked.stdout


@pytest.mark.fast
@pytest.mark.parametrize("name", SLURM)
def test_outside_slurm_a_batch_script_says_how_to_submit_it(name: str) -> None:
    told = subprocess.run(
        [LAUNCH / f"{name}.sh", "--epochs", "1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=_without_slurm(),
    )
    assert told.returncode == 2
    assert "sbatch --" in told.stderr
    assert "SBATCH" not in told.stderr


def _without_slurm() -> dict[str, str]:
    return {name: value for name, value in environment().items() if not name.startswith("SLURM")}


@pytest.mark.fast
@needs_openssl
def test_certificates_are_private_and_fit_each_other(tmp_path: Path) -> None:
    certificates = tmp_path / "a b" / "tls"
    certificates.parent.mkdir()
    subprocess.run([LAUNCH / "make_certificates.sh", certificates], check=True, timeout=PATIENCE_S)
    assert sorted(path.name for path in certificates.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert stat.S_IMODE(certificates.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in certificates.iterdir()} == {0o600}
    ours, theirs = (
        _tls_context(certificates, purpose) for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    _shake_hands(ours, theirs)
    again = subprocess.run([LAUNCH / "make_certificates.sh", certificates], capture_output=True, timeout=PATIENCE_S)
    assert again.returncode != 0, "a folder that is there may hold another's files"

    subprocess.run([LAUNCH / "make_certificates.sh", tmp_path / "other"], check=True, timeout=PATIENCE_S)
    stranger = _tls_context(tmp_path / "other", ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLError):
        _shake_hands(ours, stranger)


def _tls_context(certificates: Path, purpose: int) -> ssl.SSLContext:
    """Return a context as Dask makes it, and as strict as Python 3.13 is by itself."""
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(certificates / "ca.pem")
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return context


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=None),
    ]
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.mark.fast
def test_hosts_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "my hosts").write_text("cc@a  # the first\n\n# none\nb\n")
    for given in ("cc@a,b", str(tmp_path / "my hosts")):
        script = 'source "$0" && read_hosts "$1" && printf "<%s>" "${hosts[@]}"'
        told = subprocess.run(
            ["bash", "-euc", script, LAUNCH / "dask.sh", given], capture_output=True, timeout=PATIENCE_S
        )
        assert told.stdout == b"<cc@a><b>", told.stderr


@pytest.mark.fast
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 75), (None, 7)]
)
def test_a_job_is_sent_the_signal_and_waited_for(number: int | None, code: int, tmp_path: Path) -> None:
    """The shell's own `wait` ends at a signal; the job needs longer, and its exit code is what counts."""
    job = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.5); print('in good order', flush=True); sys.exit(75)\n"
        "signal.signal(signal.SIGUSR1, stop); signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True); time.sleep(1e6 if len(sys.argv) < 2 else 0); sys.exit(7)"
    )
    script = 'set -euo pipefail; source "$0"; run_job "$@"'
    words = [sys.executable, "-c", job, *([] if number else ["at once"])]
    process = Process(["bash", "-c", script, LAUNCH / "common.sh", *words], tmp_path / "output.txt")
    try:
        if number:
            wait_until(lambda: "ready" in process.said(), "job", [process])
            process.signal(number)
        assert process.wait() == code
        assert ("in good order" in process.said()) == bool(number)
        assert process.family() == []
    finally:
        process.end()


# --- MPI ---


@pytest.mark.system
def test_local_mpi(folder: Path, played: dict[str, str]) -> None:
    process = run_to_its_end(folder, LAUNCH / "local_mpi.sh", "2", *QUICK, **played)
    assert_done(process, folder / "my run", workers=2)


@pytest.mark.system
def test_multi_node_mpi_with_a_hostfile(folder: Path, played: dict[str, str]) -> None:
    (folder / "my hosts").write_text("localhost:2\n")
    process = run_to_its_end(folder, LAUNCH / "multi_node_mpi.sh", "my hosts", *QUICK, **played)
    assert_done(process, folder / "my run", workers=2)


# --- Slurm, played by scripts ---

SBATCH = """#!/usr/bin/env bash
# Plays sbatch: runs a copy of the script, as Slurm does, as a job of two tasks on this machine.
set -euo pipefail
grep -q '^#SBATCH --signal=B:USR1@' "$1"
cp "$1" "$PLAYED/slurm_script"
export SLURM_JOB_ID=42 SLURM_NTASKS=2 SLURM_SUBMIT_DIR=$PWD
cd "$PWD" && exec bash "$PLAYED/slurm_script" "${@:2}"
"""
SBATCH_OF_A_WORKER = """#!/usr/bin/env bash
# Plays the sbatch of dask-jobqueue: runs a copy of the script beside this one, and says its number.
cp "$1" "$0.$$"
set -m
bash "$0.$$" >"$0.$$.txt" 2>&1 </dev/null &
echo "Submitted batch job $!"
"""
SRUN = """#!/usr/bin/env bash
# Plays srun: one process a task; they end with it.
for task in $(seq "$SLURM_NTASKS"); do SLURM_PROCID=$task "$@" & done
trap 'kill $(jobs -p)' TERM
wait; wait
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >>"$PLAYED/scontrol.txt"
"""


@pytest.fixture
def slurm(tmp_path: Path, played: dict[str, str]) -> dict[str, str]:
    """An environment with a Slurm of one machine."""
    programs = tmp_path / "slurm"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{environment()['PATH']}"
    return {"PATH": path, "PLAYED": str(programs), "PBD_HOME": str(LAUNCH.parent), "PBD_REQUEUE": "1", **played}


@pytest.mark.system
@pytest.mark.parametrize("name", SLURM)
@needs_openssl
def test_a_slurm_job_is_preempted_queued_again_and_resumed(name: str, folder: Path, slurm: dict[str, str]) -> None:
    """The signal before the time limit reaches the batch shell alone; pbd leaves with 75; the next job goes on."""
    command = ["sbatch", LAUNCH / f"{name}.sh", *LONGER]
    run_dir = folder / "runs" / "slurm-42"
    process = Process(command, folder / "first.txt", environment(**slurm), cwd=folder)
    try:
        wait_until(lambda: finished_blocks(run_dir), "first block", [process])
        process.signal(signal.SIGUSR1)
        assert process.wait() == 75, process.said()
        assert process.family() == []
    finally:
        process.end()
    assert Path(slurm["PLAYED"], "scontrol.txt").read_text() == "requeue 42\n"
    kept = {path: path.stat().st_mtime_ns for path in finished_blocks(run_dir)}
    assert_done(run_to_its_end(folder, *command, **slurm), run_dir, workers=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished block was trained again"
    assert not [path for path in folder.iterdir() if path.name.startswith(".pbd-dask")], "the certificates are left"


# --- SSH ---


@dataclass(frozen=True)
class SshServer:
    """A private SSH server on this machine, and what a client needs to be let in."""

    config: Path
    port: int


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """Start sshd on a free port of the loopback addresses, with keys that are made for it."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("sshd or ssh is absent")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / name]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
    public = (folder / "host.pub").read_text().split(" test")[0]
    (folder / "known").write_text("".join(f"[127.0.0.{n}]:{port} {public}\n" for n in (1, 2)))
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nListenAddress 127.0.0.2\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
        "Subsystem sftp internal-sftp\n"
    )
    (folder / "config").write_text(
        f"Host *\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and a package's service would make it
    server = Process([sshd, "-D", "-e", "-f", folder / "sshd_config"], folder / "log.txt")
    try:
        wait_until(lambda: "listening" in server.said().lower() or not server.running, "SSH server")
        login = ["ssh", "-F", str(folder / "config"), "-o", "BatchMode=yes", "127.0.0.1", "true"]
        told = subprocess.run(login, capture_output=True, text=True, timeout=PATIENCE_S)
        if told.returncode != 0:
            pytest.skip(f"the private SSH server lets nobody in: {told.stderr.strip()}")
        yield SshServer(folder / "config", port)
    finally:
        server.end()


@pytest.mark.system
@needs_openssl
def test_dask_over_ssh(folder: Path, played: dict[str, str], ssh_server: SshServer) -> None:
    changes = {"PBD_SSH_CONFIG": str(ssh_server.config), "PBD_INTERFACE": "lo", **played}
    process = run_to_its_end(folder, LAUNCH / "dask_ssh.sh", "127.0.0.1,127.0.0.2", *QUICK, **changes)
    assert_done(process, folder / "my run", workers=2)
    assert sorted(path.name for path in folder.iterdir()) == ["my run", "output.txt"], "the certificates are left"


@pytest.mark.system
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


@pytest.mark.system
@needs_openssl
def test_a_host_that_lets_nobody_in_is_said_at_once(folder: Path, ssh_server: SshServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.3", 0))
        changes = {"PBD_SSH_CONFIG": str(ssh_server.config), "PBD_DIRECTORY": str(folder)}
        process = run_to_its_end(folder, LAUNCH / "chameleon.sh", "127.0.0.3", *QUICK, **changes)
    assert process.wait() == 255
    assert "127.0.0.3" in process.said()


# --- dask-jobqueue ---


@pytest.mark.fast
def test_the_jobqueue_example_explains_itself_without_dask_jobqueue() -> None:
    command = [sys.executable, LAUNCH / "jobqueue_slurm.py", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert told.returncode == 0
    assert "--walltime" in told.stdout


@pytest.mark.fast
def test_the_jobqueue_example_keeps_the_flags_of_pbd_apart() -> None:
    specification = importlib.util.spec_from_file_location("jobqueue_slurm", LAUNCH / "jobqueue_slurm.py")
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    options, flags = example.parse(["--workers", "8", "--job-flag=--gpus=1", "--", "--workers", "9", "--epochs", "3"])
    assert (options.workers, options.job_flag, flags) == (8, ["--gpus=1"], ["--workers", "9", "--epochs", "3"])
    assert example.parse([])[1] == []
    settings = example.cluster_settings(options, {"A": "/a b"})
    assert settings["job_script_prologue"] == ["export A='/a b'"]
    assert settings["protocol"] == "tls://"


PLAYED_JOBQUEUE = """
import runpy, sys
from tests.helpers import played_run
played_run.play()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.system
@needs_openssl
def test_the_jobqueue_example_on_a_played_slurm(folder: Path) -> None:
    if importlib.util.find_spec("dask_jobqueue") is None:
        pytest.skip("dask-jobqueue is absent")
    programs = folder.parent / "slurm"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH_OF_A_WORKER)
    (programs / "scancel").write_text('#!/usr/bin/env bash\nkill -- "-$1"\n')
    for name in ("sbatch", "scancel"):
        (programs / name).chmod(0o755)
    script = [sys.executable, "-c", PLAYED_JOBQUEUE, LAUNCH / "jobqueue_slurm.py"]
    flags = ["--workers", "2", "--interface", "lo", "--", *QUICK]
    changes = without_backend(PATH=f"{programs}:{environment()['PATH']}")
    assert_done(run_to_its_end(folder, *script, *flags, **changes), folder / "my run", workers=2)
