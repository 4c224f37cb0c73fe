"""Write the rows of a table to a CSV file."""

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pbd.errors import MissingInputError


def write_csv(rows: Iterable[Any], path: Path) -> None:
    """Write one line for each row.

    Args:
        rows: dictionaries with the same keys, or dataclasses of one type; at least one.
        path: of the file to write.

    Raises:
        MissingInputError: the file cannot be written.
    """
    lines = [dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row for row in rows]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise MissingInputError(f"the table must be writable. Received: {str(path)!r}: {error.strerror}.") from error
