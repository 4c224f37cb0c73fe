"""Seeds that depend on the run's seed and on names, never on rank or order."""

import hashlib


def derive_seed(seed: int, *names: str) -> int:
    """Return a 31-bit seed that depends on the run's seed and the names only, never on rank or order.

    `pbd.data.splitting.derived_seed` does the same for batches, with another hash; its docstring says why.
    """
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
