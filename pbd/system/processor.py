"""What the CPU can do."""

import platform
from pathlib import Path

_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni"}


def has_int8_dot_products() -> bool:
    """Return whether the CPU adds products of 8-bit integers in 32 bits: x86 with VNNI, or ARM.

    Older x86 CPUs add pairs of products in 16 bits first, which overflows if both factors have 8 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False
    return not _DOT_PRODUCTS.isdisjoint(flags.split())
