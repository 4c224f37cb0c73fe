"""Launch scripts, as far as they run without workers: usage, strictness, certificates, hosts, signals."""

import importlib.util
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import LAUNCH, PATIENCE_S, Process, environment, needs_openssl, wait_until

pytestmark = pytest.mark.fast
PLAIN = ["chameleon", "dask_ssh", "local_mpi", "make_certificates", "multi_node_mpi"]
SLURM = ["slurm_dask", "slurm_mpi"]


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is absent")
    scripts = sorted(LAUNCH.glob("*.sh"))
    told = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=PATIENCE_S)
    assert told.returncode == 0, told.stdout


def test_scripts_are_strict_and_only_they_are_executable() -> None:
    scripts = {path.stem: path for path in LAUNCH.glob("*.sh")}
    assert sorted(name for name, path in scripts.items() if os.access(path, os.X_OK)) == sorted(PLAIN + SLURM)
    for name in PLAIN + SLURM:
        text = scripts[name].read_text(encoding="utf-8")
        assert text.startswith("#!/usr/bin/env bash\n"), name
        assert "\nset -euo pipefail\n" in text, name


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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--epochs", "1"], ["--epochs", "1", "--run-dir", "runs/slurm-77"]),
        (["--run-dir", "a b", "--epochs", "1", "--resume"], ["--epochs", "1", "--run-dir", "a b", "--resume"]),
        (["--run-dir=first"], ["--run-dir", "first"]),
        (["--run-dir"], ["--run-dir", "--run-dir", "runs/slurm-77"]),  # which pbd refuses
        (["--run-dir=begun"], ["--run-dir", "begun", "--resume"]),
    ],
)
def test_a_run_directory_of_the_command_is_that_of_a_slurm_job(
    flags: list[str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").touch()
    script = 'source "$0"; run_or_requeue printf "<%s>" "$@"'
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script, LAUNCH / "slurm.sh", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=tmp_path,
        env=_without_slurm() | {"SLURM_JOB_ID": "77"},
    )
    assert told.stdout == "".join(f"<{word}>" for word in expected), told.stderr


def _without_slurm() -> dict[str, str]:
    return {name: value for name, value in environment().items() if not name.startswith("SLURM")}


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


def test_hosts_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "my hosts").write_text("cc@a  # the first\n\n# none\nb\n")
    for given in ("cc@a,b", str(tmp_path / "my hosts")):
        script = 'source "$0" && read_hosts "$1" && printf "<%s>" "${hosts[@]}"'
        told = subprocess.run(
            ["bash", "-euc", script, LAUNCH / "dask.sh", given], capture_output=True, timeout=PATIENCE_S
        )
        assert told.stdout == b"<cc@a><b>", told.stderr


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


def test_the_jobqueue_example_explains_itself_without_dask_jobqueue() -> None:
    command = [sys.executable, LAUNCH / "jobqueue_slurm.py", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert told.returncode == 0
    assert "--walltime" in told.stdout


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
