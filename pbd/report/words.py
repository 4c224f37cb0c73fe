"""Numbers and statuses as text for readers; a missing value is reported as missing."""

from collections.abc import Sequence

from pbd.records import BlockReport

ABSENT = "not measured"
STATUSES = ("accepted", "rejected", "restored", "failed", "skipped")
"""Statuses as `report.json` spells them."""
MOST_NAMES = 8


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction in percent: 93.27%."""
    return ABSENT if fraction is None else f"{fraction:.{digits}%}"


def points(old: float | None, new: float | None) -> str:
    """Return the difference of two fractions in percentage points: -1.95 points."""
    return "-" if old is None or new is None else f"{100 * (new - old):+.2f} points"


def count(value: float | None, unit: str = "") -> str:
    """Return a count with one decimal and a metric prefix: 1.2 M, 40.6 M MAC, 1.4 MB, 3.2 kJ."""
    if value is None:
        return ABSENT
    scaled, prefix = float(value), ""
    for larger in ("k", "M", "G", "T"):
        if abs(scaled) < 999.95:  # where one decimal would round up to 1000.0
            break
        scaled, prefix = scaled / 1000, larger
    number = f"{scaled:.1f}" if prefix else f"{value:.4g}"
    ending = f"{prefix}{unit}" if unit in ("B", "J", "W") else f"{prefix} {unit}"
    return f"{number} {ending.strip()}".strip()


def ratio(old: float | None, new: float | None) -> str:
    """Return how many times smaller or larger the new value is: 4.0x smaller."""
    if not old or not new:
        return "-"
    return f"{old / new:.1f}x smaller" if new <= old else f"{new / old:.1f}x larger"


def saved(old: int, new: int) -> float | None:
    """Return the fraction by which the new value is smaller; `None` if there is no change."""
    return 1 - new / old if new != old and old else None


def error(nmse: float | None) -> str:
    """Return a normalised error with four decimals, or in scientific notation from 10 on."""
    return "-" if nmse is None else f"{nmse:.4f}" if nmse < 10 else f"{nmse:.1e}"


def is_slower(times_as_fast: float) -> bool:
    """Return whether a model is slower once its speed is rounded to the two decimals shown."""
    return round(times_as_fast, 2) < 1


def factor(times_as_fast: float) -> str:
    """Return a relative speed with two decimals, from 10 on with one: 1.97, 11.7."""
    return f"{times_as_fast:.2f}" if times_as_fast < 10 else f"{times_as_fast:.1f}"


def times(times_as_fast: float | None) -> str:
    """Return a relative speed for a table: 1.97x."""
    return "-" if times_as_fast is None else f"{factor(times_as_fast)}x"


def speed(times_as_fast: float) -> str:
    """Return a speed relative to the teacher's, and say so if the model is slower: 0.80x as fast: slower."""
    return f"{times(times_as_fast)} as fast{': slower' if is_slower(times_as_fast) else ''}"


def images(batch: int) -> str:
    """Return the size of a batch in words."""
    return "one image" if batch == 1 else f"{batch} images"


def latency(seconds: float) -> str:
    """Return the time of a forward pass with three digits: 3.20 ms, 1.25 s."""
    shown, unit = (seconds, "s") if seconds >= 0.9995 else (1000 * seconds, "ms")
    return f"{shown:#.3g}".rstrip(".") + f" {unit}"


def duration(seconds: float | None) -> str:
    """Return a wall time in seconds, minutes or hours: 12.2 s, 48 min 3 s, 2 h 5 min."""
    if seconds is None:
        return ABSENT
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def names(layers: Sequence[str]) -> str:
    """Return the names of layers; of many, only the first ones and their number."""
    return (
        ", ".join(layers) if len(layers) <= MOST_NAMES else f"{', '.join(layers[:MOST_NAMES])} … ({len(layers)} layers)"
    )


def decisions(rows: Sequence[BlockReport]) -> list[tuple[str, int]]:
    """Return the number of layers with each status: `accepted` always, the others only if there are any."""
    numbers = [(status, sum(row.status == status for row in rows)) for status in STATUSES]
    return [(status, number) for status, number in numbers if number or status == "accepted"]


def replaced(rows: Sequence[BlockReport]) -> str:
    """Return the decisions in one line: 17 of 19 layers replaced, 1 rejected, 1 skipped."""
    (_, accepted), *others = decisions(rows)
    rest = [f", {number} {status}" for status, number in others]
    return f"{accepted} of {len(rows)} layers replaced{''.join(rest)}"
