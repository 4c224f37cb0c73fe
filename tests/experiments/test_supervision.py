"""What child processes cost: two runs that differ in nothing else, in turns, in alternating order."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from experiments import interleave, supervision

pytestmark = pytest.mark.fast


def test_runs_differ_only_in_who_trains_and_the_median_of_the_pairs_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    bare_s = iter([100.0, 50.0, 200.0])

    def run(commands: Mapping[Path, Sequence[str]], turns_s: Sequence[float]) -> list[interleave.Job]:
        assert turns_s == [7, 7]
        started.extend(map(list, commands.values()))
        seconds = next(bare_s)
        took_s = [1.02 * seconds if "--isolate" in command else seconds for command in commands.values()]
        return [interleave.Job(None, Path(), [(0.0, 0.5 * each), (1000.0, 1000.0 + 0.5 * each)]) for each in took_s]

    monkeypatch.setattr(interleave, "run", run)
    assert supervision.main(["--workers", "3", "--turns", "7", "--", "--epochs", "5"]) == 0
    assert "+2.0%, 3 workers" in capsys.readouterr().out
    ways = [next(word for word in command if "isolate" in word) for command in started]
    assert ways == ["--isolate", "--no-isolate", "--no-isolate", "--isolate", "--isolate", "--no-isolate"]
    for command in started:
        assert command[command.index("-n") + 1] == "3"
        assert command[command.index("--epochs") + 1] == "5"
    directories = [command[command.index("--run-dir") + 1] for command in started]
    assert len(set(directories)) == 6
    first, second = ([w for w in c if "isolate" not in w and w not in directories] for c in started[:2])
    assert first == second
