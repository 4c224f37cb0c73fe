"""The paper's tables and figures: what is run for them, what is made of it, and the paper's figures beside ours."""

import csv
import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments import interleave
from experiments.paper import __main__ as everything
from experiments.paper import figure5, figure6, paper_comparison, plans, runs, table1, table9, tables3to6, tables7and8
from experiments.paper.paper_comparison import Spread
from experiments.paper.runs import Run
from experiments.speed import Row as SpeedRow
from pbd import RunConfig, run
from pbd.errors import BadInputError, CannotCreateError, MissingInputError, UsageError
from profiling.greenup import Measured
from tests.helpers.report_factory import make_report, make_row

SCRIPTS = everything.SCRIPTS
RUN_SCRIPTS = [script for script in SCRIPTS if script not in (table1, figure5)]


def report(workers: int = 1, energy_j: float | None = None, **changes: Any) -> dict[str, Any]:
    """Return what pbd writes; two workers are 1.6 times as fast in the block phase, 1.25 times in all."""
    blocks = [make_row(f"conv{n}", "accepted", "good", worker=n % workers, started_s=0.0) for n in range(2)]
    made = make_report(blocks=tuple(blocks), workers=make_report().workers[:workers])
    found = json.loads(json.dumps(made, default=lambda part: part.__dict__))
    found["timing"] |= {"distill_s": 80.0 if workers == 1 else 50.0, "total_s": 200.0 if workers == 1 else 160.0}
    found["energy"] = {"source": "rapl" if energy_j else "none", "total_j": energy_j}
    return found | changes


def lines_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fake_pbd(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Runs of pbd write a report at once; what each is given is checked by pbd's own parser, and noted."""
    given: list[Sequence[str]] = []

    def run_module(executor: str, workers: int, module: Sequence[str], bound: bool = False) -> str:
        config = run.parse(module[1:])
        run_dir = Path(config.execution.run_dir)
        run_dir.mkdir(parents=True)
        written = report(workers, config=config.flat(), scheduler=config.execution.scheduler)
        if config.blocks.layers:
            written["blocks"] = [written["blocks"][0] | {"block": config.blocks.designs[0]}]
        (run_dir / "report.json").write_text(json.dumps(written))
        given.append(module)
        return ""

    monkeypatch.setattr(runs, "run_module", run_module)
    monkeypatch.setattr(
        figure5.speed,
        "run",
        lambda settings, console: [
            SpeedRow("task", 1, 80.0, 80.0, 80.0, None, 1.0),
            SpeedRow("task", 2, 50.0, 50.0, 50.0, None, 1.6),
            SpeedRow("automatic", 2, 64.0, 64.0, 64.0, None, 1.25),
        ],
    )
    return given


def test_all_tables_and_figures_print_ours_beside_the_papers_and_write_csv_and_png(
    fake_pbd: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "csv", "plots")]
    assert everything.main(["--quick", *folders]) == 0
    said = capsys.readouterr().out
    for title in ("Table 1:", "Tables 3 to 6:", "Tables 7 and 8:", "Table 9:", "Figure 5:", "Figure 6:"):
        assert title in said
    assert said.count("ours") >= 8
    assert "Ours: digits_cnn, 1024 images of digits, epochs: 2 for each block" in said
    assert "nothing measured the energy" in said
    names = {"table1", "tables3to6", "tables7and8", "table9", "figure5", "figure6"}
    assert {path.stem for path in (tmp_path / "csv").iterdir()} == names
    assert {path.stem.partition("-")[0] for path in (tmp_path / "plots").iterdir()} == names
    skip = next(row for row in lines_of(tmp_path / "csv" / "table1.csv") if row["block"] == "two_layer_skip")
    names = ("nmse", "paper_loss", "swapped", "paper_swapped", "paper_fine_tuned")
    assert [float(skip[name]) for name in names] == pytest.approx([0.127, 3.536e-05, 0.91, 0.8628, 0.8698])
    rows = lines_of(tmp_path / "csv" / "tables3to6.csv")
    ours = {(row["how"], row["workers"]): row for row in rows if row["whose"] == "ours"}
    assert set(ours) == {("-", "1"), ("task", "2"), ("data", "2")}
    assert float(ours["data", "2"]["speedup"]) == 1.6
    assert float(ours["data", "2"]["efficiency"]) == 0.8
    assert float(ours["data", "2"]["total_speedup_low"]) == 1.25
    assert all(row["source"] for row in rows if row["whose"] != "ours")
    assert len(fake_pbd) == 5 + 4 + 2 + 0 + 2, "table 9 takes the runs of tables 3 to 6"


def test_figure_5_waits_for_no_one_and_its_command_is_one_of_speeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert figure5.main(["--full", "--print-commands", "--workers", "2", "4"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[:3] for command in commands] == [["python", "-m", "experiments.speed"]] * 2
    assert [figure5.speed.parse(command[3:]).image_size for command in commands] == [32, 64]
    settings = figure5.speed.parse(commands[1][3:])
    assert (settings.teacher, settings.epochs, settings.workers) == ("ResNet50", 30, [1, 2, 4])
    assert settings.schemes == ["task", "automatic"]


@pytest.mark.parametrize("script", RUN_SCRIPTS, ids=lambda script: script.__name__.rpartition(".")[-1])
def test_full_runs_are_the_papers_and_pbd_takes_them(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--full", "--print-commands"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert max(int(command[2]) for command in commands) == 4
    for command in commands:
        assert [*command[:2], *command[3:6]] == ["mpirun", "-n", "python", "-m", "pbd.run"]
    flags = [dict(itertools.pairwise(command)) for command in commands]
    assert {one["--teacher"] for one in flags} == {"VGG16", "ResNet50"}
    epochs = {(one["--dataset"], one["--epochs"]) for one in flags if one["--epochs"] != "0"}
    assert epochs <= {("cifar10", "30"), ("tfds:imagenet2012", "2")}
    configs = [run.parse(command[6:]) for command in commands]
    for config in configs:
        scope = "no_1x1_dense" if config.teacher.teacher == "ResNet50" else "all"
        assert config.student.fine_tune_scope == scope
        assert (config.student.max_accuracy_drop, config.training.patience) == (1.0, 0), "all blocks do the same work"


def test_table_1_replaces_the_second_convolution_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert table1.main(["--full", "--print-commands"]) == 0
    configs = [run.parse(shlex.split(line)[6:]) for line in capsys.readouterr().out.splitlines()]
    assert len(configs) == 5
    for config in configs:
        assert (config.teacher.teacher, config.blocks.layers) == ("VGG16", ("block1_conv2",))
        assert (config.training.epochs, config.student.fine_tune_scope) == (20, "blocks")
        assert config.student.fine_tune_loss == "cross_entropy"
    assert [config.blocks.designs[0] for config in configs[:4]] == [row["block"] for row in paper_comparison.table(1)]
    assert {config.blocks.block_init for config in configs[:4]} == {"noise"}


def test_own_networks_and_images_take_the_place_of_the_papers(tmp_path: Path) -> None:
    teacher = tmp_path / "mine.keras"
    teacher.touch()
    given = tables3to6.parse(
        ["--full", "--teacher", str(teacher), "--train-limit", "500", "--batch-size", "128", "--print-commands"]
    )
    (setting,) = given.settings
    config = RunConfig.of(**setting.flags)
    assert setting.name == "mine, cifar10"
    assert (config.data.train_limit, config.data.batch_size, config.training.epochs) == (500, 128, 30)
    assert config.teacher.teacher_weights is None
    assert tables3to6.warm_up(setting) == []
    images = tmp_path / "images.npz"
    images.touch()
    given = tables3to6.parse(["--full", "--dataset", str(images), "--teacher-epochs", "1", "--print-commands"])
    assert [setting.name for setting in given.settings] == ["VGG16, images", "ResNet50, images"]
    assert [RunConfig.of(**setting.flags).data.image_size for setting in given.settings] == [32, 64]
    assert {RunConfig.of(**setting.flags).teacher.teacher_epochs for setting in given.settings} == {1}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--quick", "--full"], UsageError, "not allowed with"),
        (["--workers", "0"], UsageError, "whole number above 0"),
        (["--epochs", "-1"], UsageError, "epochs must be at least 0"),
        (["--teacher", "absent.keras"], MissingInputError, "--teacher must be a file that exists"),
        (["--dataset", "absent.npz"], MissingInputError, "--dataset must be a file that exists"),
        (["--csv", "/dev/null/tables"], CannotCreateError, "folders"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], error: type, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables3to6.main(arguments if "--csv" in arguments else [*arguments, "--print-commands"]) == error.exit_code
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_blocks_that_see_a_whole_batch_are_not_trained_by_sharing_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables3to6.cases(plans.VGG16, [1, 2, 4], None) == [("task", 1), ("task", 2), ("task", 4)]
    assert tables3to6.cases(plans.SMALL, [2], None) == [("task", 1), ("task", 2), ("data", 2)]
    assert tables3to6.main(["--full", "--parallel", "data", "--print-commands"]) == UsageError.exit_code
    assert "blocks without batch normalisation" in capsys.readouterr().err
    assert tables7and8.main(["--recipes", "papre"]) == UsageError.exit_code
    assert "Did you mean 'paper'?" in capsys.readouterr().err


def test_speedups_are_medians_over_pairs_that_stood_side_by_side() -> None:
    def taking(seconds: float) -> dict[str, Any]:
        return {"timing": {"distill_s": seconds, "total_s": 2 * seconds}}

    one, two = [taking(s) for s in (100.0, 200.0, 90.0)], [taking(s) for s in (50.0, 160.0, 60.0)]
    setting = plans.SMALL
    alone, row = tables3to6.summarise(setting, {("task", 1): one, ("data", 2): two})
    assert row["speedup"] == Spread(1.5, 1.25, 2.0)
    assert row["total_speedup"] == Spread(1.5, 1.25, 2.0)
    assert (row["efficiency"], row["blocks_s"], row["how"]) == (0.75, 60.0, "data")
    assert (alone["speedup"], alone["how"]) == (Spread(1.0, 1.0, 1.0), "-")
    order = tables3to6.planned(setting, tables3to6.cases(setting, [1, 2], ["task"]), repeats=2)
    assert [(one.workers, one.name[-1]) for one in order] == [(1, "0"), (2, "0"), (1, "1"), (2, "1")]


def test_runs_that_take_turns_are_timed_by_them(
    fake_pbd: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has the machine for every other second: what it wrote at a moment, it wrote after half as many."""

    def in_turns(commands: dict[Path, Sequence[str]], turns_s: Sequence[float]) -> list[interleave.Job]:
        assert turns_s == [6, 3], "two workers need half as long"
        for said, command in commands.items():
            runs.run_module(
                "mpi", 2 if "2" in command[: command.index("-m")] else 1, command[command.index("-m") + 1 :]
            )
            for name, moment in (
                ("teacher.keras", 10),
                ("blocks/a.npz", 70),
                ("blocks/b.npz", 50),
                ("report.json", 90),
            ):
                path = said.with_suffix("") / name
                path.parent.mkdir(exist_ok=True)
                path.touch()
                os.utime(path, (moment, moment))
        return [
            interleave.Job(None, said, [(second, second + 1) for second in range(at, 100, 2)])
            for at, said in enumerate(commands)
        ]

    monkeypatch.setattr(interleave, "run", in_turns)
    arguments = ["--workers", "1", "2", "--parallel", "task", "--turns", "3", "--runs", str(tmp_path / "runs")]
    assert tables3to6.main(arguments) == 0
    ours = [row for row in lines_of(tmp_path / "runs" / "tables" / "tables3to6.csv") if row["whose"] == "ours"]
    assert [(float(row["blocks_s"]), float(row["total_s"])) for row in ours] == [(30.0, 45.0), (30.0, 45.0)]
    assert "in turns" in capsys.readouterr().out
    assert tables3to6.main(arguments) == CannotCreateError.exit_code, "what was written at other times tells nothing"


def test_the_papers_errors_are_not_repeated() -> None:
    found = {(row["source"], row["network"], row["workers"]): row for row in tables3to6.papers()}
    efficiency = {n: found["Table 3", "ResNet50, CIFAR-10", n]["efficiency"] for n in (2, 3, 4)}
    assert efficiency == pytest.approx({2: 0.96, 3: 0.83, 4: 0.88}, abs=0.005)
    assert found["Table 4", "ResNet50, CIFAR-10", 4]["speedup"] == pytest.approx(3.87, abs=0.005)
    energy = {(row["network"], row["workers"]): row for row in table9.papers()}
    assert energy["ResNet50, CIFAR-10", 4]["saved"] == pytest.approx(0.225, abs=0.0015)
    assert energy["VGG16, CIFAR-10", 4]["saved"] == pytest.approx(0.16, abs=0.0015)
    assert energy["ResNet50, CIFAR-10", 2]["greenup"] == pytest.approx(1.14, abs=0.005), "1.18 is printed"


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_computed_speedups_are_those_that_the_paper_prints(number: int) -> None:
    computed = {
        (row["network"], row["workers"]): row for row in tables3to6.papers() if row["source"][-1] == str(number)
    }
    for printed in paper_comparison.table(number):
        data = printed["setting"].partition(",")[0]
        row = computed.pop((f"{printed['network']}, {data}", printed["gpus"]))
        assert row["speedup"] == pytest.approx(printed["speedup"], abs=0.006)
    assert not computed


def test_differences_are_those_that_the_paper_prints() -> None:
    rows = [row for number in (7, 8) for row in paper_comparison.table(number)]
    for printed, row in zip(rows, tables7and8.papers(), strict=True):
        assert -row["drop_points"] == pytest.approx(printed["change"])


def test_what_the_figures_are_compared_with_has_a_source() -> None:
    sections = json.loads((paper_comparison.DATA / "paper_figures.json").read_text())
    rows = [row for section in sections.values() if isinstance(section, list) for row in section]
    assert {row["kind"] for row in rows} == {"printed", "logged"}
    assert all(row["source"] for row in rows)


def test_greenup_is_that_of_the_reports_energy() -> None:
    setting = plans.SMALL
    row = table9.compared(setting, report(1, energy_j=2580.0), report(2, energy_j=2000.0))
    assert (row["speedup"], row["greenup"], row["workers"]) == (1.25, 1.29, 2)
    assert row["powerup"] == pytest.approx(1.25 / 1.29)
    unmeasured = table9.compared(setting, report(1), report(2, energy_j=2000.0))
    assert (unmeasured["speedup"], unmeasured["greenup"], unmeasured["saved"]) == (1.25, None, None)
    whole = report(1, energy_j=5.0)
    assert table9.spent(whole) == Measured("report.json", 200.0, {"all": 5.0}, "rapl")
    assert table9.spent(whole | {"energy": whole["energy"] | {"partial": True}}) is None
    assert table9.spent(whole | {"config": whole["config"] | {"resume": True}}) is None


def test_recorded_traces_stand_for_runs(fake_pbd: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seconds, watts in (("one", 100, 129), ("four", 40, 250)):
        lines = [f"{second},{watts * second}" for second in range(seconds + 1)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["t_s,rapl_package-0_j", *lines]) + "\n")
    arguments = ["--runs", str(tmp_path), "--traces", *(str(tmp_path / f"{name}.csv") for name in ("one", "four"))]
    assert table9.main(arguments) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "one and four" in line)
    assert re.findall(r"[\d.]+%?", line) == ["2.50", "1.29", "1.94", "22.5%"]
    assert not fake_pbd
    (tmp_path / "four.csv").write_text("t_s\n0\n1\n")
    assert table9.main(arguments) == BadInputError.exit_code


@pytest.fixture
def plain() -> Run:
    return Run("Plain, digits", 1, {"epochs": 2, "group": False})


def test_a_run_is_what_a_user_types(plain: Run) -> None:
    wanted = "mpirun -n 1 python -m pbd.run --epochs 2 --no-group --run-dir all/plain-digits"
    assert plain.command(Path("all")) == wanted


def change_epochs(run_dir: Path) -> None:
    written = json.loads((run_dir / "report.json").read_text())
    written["config"]["epochs"] = 3
    (run_dir / "report.json").write_text(json.dumps(written))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(lambda run_dir: (run_dir / "report.json").unlink(), "never stopped"), (change_epochs, "same settings")],
)
def test_finished_runs_are_taken_and_others_refused(
    fake_pbd: list, plain: Run, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    assert runs.carry_out([plain], tmp_path) == runs.carry_out([plain], tmp_path)
    assert len(fake_pbd) == 1
    spoil(plain.directory(tmp_path))
    with pytest.raises(CannotCreateError, match=words):
        runs.carry_out([plain], tmp_path)


def test_schedulers_are_compared_by_the_busiest_worker() -> None:
    row = figure6.row("ours", "a network", "wfd", [30.0, 10.0])
    assert (row["busy"], row["longest_s"], row["evenness"], row["workers"]) == ("30 10", 30.0, pytest.approx(2 / 3), 2)
    found = {(one["whose"], one["scheduler"]): one for one in figure6.papers(["round_robin", "wfd"])}
    for whose in ("paper, logged", "replayed here"):
        assert found[whose, "wfd"]["longest_s"] < found[whose, "round_robin"]["longest_s"]


def test_figures_are_written_as_they_are_known() -> None:
    assert paper_comparison.cell(None, ".2f") == "-"
    assert paper_comparison.cell(Spread.of([1.5, 1.25, 2.0]), ".2f") == "1.50 (1.25 to 2.00)"
    assert paper_comparison.cell(Spread.of([1.5]), ".2f") == "1.50"
