"""Name and instruction sets of this CPU."""

import contextlib
import hashlib
import platform
from pathlib import Path

_USUAL_CACHE_BYTES = 2**25
_CACHE_SIZES = "/sys/devices/system/cpu/cpu0/cache"
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni"}


def name() -> str | None:
    """Return the CPU's name, `None` where Linux does not tell it."""
    return _info("model name")


def kind() -> str:
    """Return a name for CPUs with the same instructions, fit for a folder."""
    described = f"{platform.machine()} {name()} {_info('flags') or _info('Features')}"
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def has_int8_dot_products() -> bool:
    """Return whether the CPU adds products of 8-bit integers in 32 bits: x86 with VNNI, or ARM.

    Older x86 CPUs add pairs of products in 16 bits first, which overflows if both factors have 8 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return not _DOT_PRODUCTS.isdisjoint((_info("flags") or "").split())


def cache_bytes() -> int:
    """Return the size of the largest cache of the first core; 32 MiB where Linux does not tell it."""
    sizes = []
    for path in Path(_CACHE_SIZES).glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(1024 * int(path.read_text().strip().removesuffix("K")))
    return max(sizes, default=_USUAL_CACHE_BYTES)


def _info(key: str) -> str | None:
    """Return what `/proc/cpuinfo` says of the first core under a key."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0].strip() == key), None)
