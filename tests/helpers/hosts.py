"""For the tests: hosts with addresses of their own, made of network namespaces."""

import contextlib
import dataclasses
import functools
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S


@dataclass
class Host:
    """Where processes are started: this host, or a network namespace that stands for another one."""

    address: str = "127.0.0.1"
    namespace: str | None = None
    port: str = ""
    """The bridge's end of its cable."""

    def command(self, words: Sequence[str | Path]) -> list[str | Path]:
        """Return the command that runs words there, under the host's name."""
        if self.namespace is None:
            return [*words]
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.namespace]
        return ["ip", "netns", "exec", self.namespace, *named, *words]


def why_no_namespaces() -> str | None:
    """Return why network namespaces cannot be made here, `None` where they can."""
    if shutil.which("ip") is None:
        return "ip (iproute2) is absent"
    try:
        with _made_hosts(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"


@contextlib.contextmanager
def several_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts with addresses of their own (10.77.0.1, …), each on a cable to one bridge; skip where that fails."""
    reason = _namespaces()
    if reason:
        pytest.skip(reason)
    with _made_hosts(count) as hosts:
        yield hosts


_namespaces = functools.cache(why_no_namespaces)


@contextlib.contextmanager
def _made_hosts(count: int) -> Iterator[list[Host]]:
    mark = f"pbd{uuid.uuid4().hex[:6]}"
    hosts = [Host(f"10.77.0.{number + 1}", f"{mark}h{number}", f"port{number}") for number in range(count)]
    switch = f"{mark}sw"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _plug_in(host, switch)
        yield [dataclasses.replace(host, port=f"{switch}/{host.port}") for host in hosts]
    finally:
        for name in (switch, *(str(host.namespace) for host in hosts)):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=PATIENCE_S)


def _plug_in(host: Host, switch: str) -> None:
    name = str(host.namespace)
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", switch, "link", "set", host.port, "master", "bridge", "up")
    _ip("-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")


def cut_link(host: Host) -> None:
    """Pull the host's cable: packets are lost from now on, and nobody is told."""
    switch, port = host.port.split("/")
    _ip("-n", switch, "link", "set", port, "nomaster")


def mend_link(host: Host) -> None:
    """Plug the host's cable in again."""
    switch, port = host.port.split("/")
    _ip("-n", switch, "link", "set", port, "master", "bridge")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=PATIENCE_S)
