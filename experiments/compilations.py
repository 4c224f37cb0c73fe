"""What JAX traces and compiles in this process, and which functions of pbd caused it."""

import collections
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pbd

COMPILED = "/jax/core/compile/backend_compile_duration"
"""Reported for every executable that is asked for; one that is read from the cache counts the time of reading it."""
TRACED, LOWERED = "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"
CACHED, NOT_CACHED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
FRAMES = 3
"""The innermost functions of pbd that are named."""
_PACKAGE = Path(pbd.__file__).parent


class Recorder:
    """Counts JAX's events from now on, for the life of the process: JAX has no public way to stop listening."""

    def __init__(self) -> None:
        import jax

        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._seconds: collections.Counter[str] = collections.Counter()
        self._callers: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
        jax.monitoring.register_event_duration_secs_listener(self._add_duration)
        jax.monitoring.register_event_listener(self._add)

    def _add(self, event: str, **_: Any) -> None:
        with self._lock:
            self._counts[event] += 1

    def _add_duration(self, event: str, seconds: float, **_: Any) -> None:
        with self._lock:
            self._counts[event] += 1
            self._seconds[event] += seconds
            if event == COMPILED:
                caller = self._callers[" < ".join(callers(sys._getframe(1))) or "outside of pbd"]
                caller[0] += 1
                caller[1] += seconds

    def as_json(self) -> dict[str, Any]:
        """Return counts and seconds, and `[count, seconds]` of compiling by the functions of pbd that caused it."""
        with self._lock:
            return {
                "compilations": self._counts[COMPILED],
                "compile_s": self._seconds[COMPILED],
                "trace_s": self._seconds[TRACED] + self._seconds[LOWERED],
                "cache_hits": self._counts[CACHED],
                "cache_misses": self._counts[NOT_CACHED],
                "callers": {name: list(figures) for name, figures in self._callers.items()},
            }


def callers(frame: FrameType | None) -> list[str]:
    """Return the innermost functions of pbd on the stack of a frame, as `folder/file.py function`, innermost first."""
    found: list[str] = []
    while frame is not None and len(found) < FRAMES:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            found.append(f"{path.relative_to(_PACKAGE)} {frame.f_code.co_name}")
        frame = frame.f_back
    return found
