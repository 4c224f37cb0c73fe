"""Start-up timeout: a helper process that prints a message and ends its parent if `MPI_Init` does not return in time.

`MPI_Init` waits for every rank without releasing the interpreter lock, so no Python thread of the same process could
do this. The module runs as a script without pbd.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

_LAUNCHER_READS_S = 0.3


@contextlib.contextmanager
def ended_after(seconds: float, message: str) -> Iterator[None]:
    """Print a message and end this process by SIGALRM unless it leaves the block in time."""
    command = [sys.executable, "-IS", __file__, str(os.getpid()), str(seconds), message]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
        yield


def main(process: int, seconds: float, message: str) -> None:
    """Print `message` and end `process` by SIGALRM, unless this process's standard input is closed in time."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # this process ends with its parent
    if not select.select([sys.stdin], [], [], seconds)[0]:
        with contextlib.suppress(OSError):  # standard error is gone, and the process must end all the same
            print(message, file=sys.stderr, flush=True)
        time.sleep(_LAUNCHER_READS_S)
        os.kill(process, signal.SIGALRM)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
