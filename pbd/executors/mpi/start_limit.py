"""Ends a process that waits too long for others to start, with a word: a process beside it, which needs no pbd.

MPI's own start waits for every rank without letting go of the interpreter, so that nothing in Python could.
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
def ended_after(seconds: float, words: str) -> Iterator[None]:
    """Have this process say something and be ended by SIGALRM, unless it leaves the block before."""
    command = [sys.executable, "-IS", __file__, str(os.getpid()), str(seconds), words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
        yield


def main(process: int, seconds: float, words: str) -> None:
    """Wait for the other process to let go of the input, in whatever way; end it if it does not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the other one does
    if not select.select([sys.stdin], [], [], seconds)[0]:
        print(words, file=sys.stderr, flush=True)
        time.sleep(_LAUNCHER_READS_S)
        os.kill(process, signal.SIGALRM)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
