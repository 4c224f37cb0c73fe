"""Figures as people read them."""


def percent(fraction: float | None, digits: int = 2) -> str:
    return "not measured" if fraction is None else f"{fraction:.{digits}%}"


def count(value: float | None, unit: str = "") -> str:
    """Return a count with one decimal and a prefix of a thousand: 1.2 M, 40.6 M MAC, 1.4 MB."""
    if value is None:
        return "not measured"
    scaled, prefix = float(value), ""
    for larger in ("k", "M", "G", "T"):
        if abs(scaled) < 999.95:  # where one decimal would round up to 1000.0
            break
        scaled, prefix = scaled / 1000, larger
    number = f"{scaled:.1f}" if prefix else f"{value:g}"
    ending = f"{prefix}{unit}" if unit == "B" else f"{prefix} {unit}"
    return f"{number} {ending.strip()}".strip()


def ratio(old: float | None, new: float | None) -> str:
    if not old or not new:
        return "-"
    return f"{old / new:.1f}x smaller" if new <= old else f"{new / old:.1f}x larger"
