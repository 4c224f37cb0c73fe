"""The comparison of two traces: its figures, and the traces it refuses."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from profiling import greenup

pytestmark = pytest.mark.fast


def write(path: Path, seconds: int, **columns: Callable[[float], object]) -> Path:
    """Write a trace with a row a second; names of columns have `__` for a hyphen."""
    names = {name.replace("__", "-"): column for name, column in columns.items()}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t_s", "cpu_percent", *names])
        writer.writerows([second, "", *(column(second) for column in names.values())] for second in range(seconds + 1))
    return path


def steady(watts: float) -> Callable[[float], float]:
    return lambda second: round(watts * second, 3)


def test_the_papers_figures(tmp_path: Path) -> None:
    reference = write(tmp_path / "one.csv", 1000, rapl_package__0_j=steady(60), nvml_gpu__0_j=steady(100))
    optimised = write(
        tmp_path / "four.csv",
        400,
        rapl_package__0_j=steady(80),
        nvml_gpu__0_j=steady(120),
        nvml_gpu__1_j=steady(110.0775),
        rapl_package__0_w=lambda second: "",
        amd_msr_core__0_j=steady(1e6),
    )
    runs = [greenup.read_trace(path) for path in (reference, optimised)]
    assert runs[0].by_kind_j == pytest.approx({"package": 60_000, "gpu": 100_000})
    assert runs[1].by_kind_j == pytest.approx({"package": 32_000, "gpu": 92_031})
    compared = greenup.Comparison.of(*runs)
    assert compared.speedup == pytest.approx(2.5)
    assert compared.greenup == pytest.approx(1.29, abs=1e-3)
    assert compared.powerup == pytest.approx(runs[1].watts / runs[0].watts)


@pytest.mark.parametrize(
    ("watts", "wanted_j"),
    [
        (lambda second: 200.0, 200 * 600),
        (lambda second: second / 2, 600 * 600 / 4),
        (lambda second: 100 + 80 * math.sin(2 * math.pi * second / 40), 100 * 600),
    ],
    ids=["constant", "ramp", "sine"],
)
def test_power_alone_is_integrated(tmp_path: Path, watts: Callable[[float], float], wanted_j: float) -> None:
    spent = greenup.read_trace(write(tmp_path / "trace.csv", 600, nvml_gpu__0_w=watts))
    assert spent.joules == pytest.approx(wanted_j, rel=1e-3)


def test_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write(tmp_path / f"[{watts}].csv", 129, rapl_package__0_j=steady(watts)) for watts in (129, 100)]
    assert greenup.main(list(map(str, paths))) == 0
    printed = capsys.readouterr().out
    for said in ("speedup 1.000", "greenup 1.290", "powerup 0.775", "22.5% less", "[129].csv", "rapl"):
        assert said in printed
    assert greenup.main(list(map(str, reversed(paths)))) == 0
    assert "29.0% more" in capsys.readouterr().out


def refused(arguments: list[Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = greenup.main(list(map(str, arguments)))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return code, said.err


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "must contain energy"),
        ({"amd_msr_core__0_j": steady(5)}, "must contain energy"),
        ({"rapl_package__0_j": lambda second: 5 * second if second < 30 else ""}, "row 31 of 61"),
        ({"rapl_package__0_j": lambda second: "nan"}, "nan"),
        ({"rapl_package__0_j": lambda second: 7}, "0 J"),
        ({"rapl_package__0_j": steady(5), "nvml_gpu__0_w": lambda second: "off"}, "'off'"),
        ({"rapl_package__0_j": steady(5), "nvml_gpu__0_j": steady(5)}, "same kinds"),
    ],
)
def test_traces_without_the_whole_energy_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Callable[[float], object]], said: str
) -> None:
    good = write(tmp_path / "good.csv", 60, rapl_package__0_j=steady(5))
    bad = write(tmp_path / "bad.csv", 60, **columns)
    for order in ([good, bad], [bad, good]):
        code, error = refused(order, capsys)
        assert code == 65
        assert said in error
        assert "bad.csv" in error


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, 66),
        (b"", 65),
        (b"t_s,rapl_package-0_j\r\n0,0\r\n", 65),
        (b"t_s,rapl_package-0_j\r\n1,0\r\n1,5\r\n", 65),
        (b"rapl_package-0_j\r\n1\r\n2\r\n", 65),
        (b"t_s,rapl_package-0_j\r\n0,0\r\n1\r\n", 65),
        (b"\x89PNG\x00\xff\xfe", 65),
    ],
)
def test_what_is_no_trace_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, code: int
) -> None:
    good = write(tmp_path / "good.csv", 60, rapl_package__0_j=steady(5))
    bad = tmp_path / "bad.csv"
    if content is not None:
        bad.write_bytes(content)
    assert refused([good, bad], capsys)[0] == code
    assert refused([bad, good], capsys)[0] == code


def test_two_traces_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([Path("one.csv")], capsys)[0] == 2
