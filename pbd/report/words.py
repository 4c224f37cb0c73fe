"""Figures as people read them; what is absent is said to be so."""

from collections.abc import Sequence

from pbd.records import BlockReport, Latency

ABSENT = "not measured"
STATUSES = ("accepted", "rejected", "given_back", "failed", "skipped")


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return a share of one in percent: 93.27%."""
    return ABSENT if fraction is None else f"{fraction:.{digits}%}"


def points(old: float | None, new: float | None) -> str:
    """Return the difference of two shares in percentage points: -1.95 points."""
    return "-" if old is None or new is None else f"{100 * (new - old):+.2f} points"


def count(value: float | None, unit: str = "") -> str:
    """Return a count with one decimal and a prefix of a thousand: 1.2 M, 40.6 M MAC, 1.4 MB, 3.2 kJ."""
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
    """Return how many times smaller the new one is, or larger."""
    if not old or not new:
        return "-"
    return f"{old / new:.1f}x smaller" if new <= old else f"{new / old:.1f}x larger"


def saved(old: int, new: int) -> float | None:
    """Return the share that the new one does without; `None` where that is nothing."""
    return 1 - new / old if new != old and old else None


def error(nmse: float | None) -> str:
    """Return a normalised error with the digits that matter."""
    return "-" if nmse is None else f"{nmse:.4f}" if nmse < 10 else f"{nmse:.1e}"


def is_slower(times_as_fast: float) -> bool:
    """Return whether a network is slower by what two decimals show."""
    return round(times_as_fast, 2) < 1


def speed(times_as_fast: float) -> str:
    """Return it so that a network that is not faster is seen to be slower."""
    said = f"{times_as_fast:.2f}" if times_as_fast < 10 else f"{times_as_fast:.1f}"
    return f"{said}x as fast{': slower' if is_slower(times_as_fast) else ''}"


def speeds(rows: Sequence[Latency]) -> str:
    """Return the same for each batch size, in a sentence's words."""
    said = [
        f"{row.times_as_fast:.2f} times as fast with {images(row.batch)} at a time"
        f"{' (slower)' if is_slower(row.times_as_fast) else ''}"
        for row in rows
    ]
    return " and ".join(said).replace("as fast", "as fast as the teacher", 1)


def rounds(rows: Sequence[Latency]) -> str:
    """Return how often each batch size was measured."""
    return " and ".join(f"{row.rounds} rounds with {images(row.batch)}" for row in rows)


def images(batch: int) -> str:
    """Return what a batch holds."""
    return "one image" if batch == 1 else f"{batch} images"


def latency(seconds: float) -> str:
    """Return the time of a forward pass with three digits: 3.20 ms, 1.25 s."""
    shown, unit = (seconds, "s") if seconds >= 0.9995 else (1000 * seconds, "ms")
    return f"{shown:#.3g}".rstrip(".") + f" {unit}"


def duration(seconds: float | None) -> str:
    """Return a wall time in the unit that suits it: 12.2 s, 48 min 3 s, 2 h 5 min."""
    if seconds is None:
        return ABSENT
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def decisions(rows: Sequence[BlockReport]) -> list[tuple[str, int]]:
    """Return how many layers each decision was made about: accepted first, and of the others those that there are."""
    numbers = [(status, sum(row.status == status for row in rows)) for status in STATUSES]
    return [(status, number) for status, number in numbers if number or status == "accepted"]


def replaced(rows: Sequence[BlockReport]) -> str:
    """Return the decisions in one line: 17 of 19 layers replaced, 1 rejected, 1 skipped."""
    (_, accepted), *others = decisions(rows)
    rest = [f", {number} {status.replace('_', ' ')}" for status, number in others]
    return f"{accepted} of {len(rows)} layers replaced{''.join(rest)}"
