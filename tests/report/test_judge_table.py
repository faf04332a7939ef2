"""The figures of a judge as a table, on the console and in the page."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from spin import __version__
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.judge import JudgeConfig
from spin.config.objective import DpoObjective
from spin.config.run import RunConfig, fingerprint, to_plain
from spin.report.compare_runs import aggregate
from spin.report.judge_table import make_judge_table
from spin.report.page import write_report
from spin.run_dir.judge_statistics import JudgeStatistics, Mean
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout


def make_statistics(**changes: Any) -> JudgeStatistics:
    """Two comparisons with the biases 0.1 and 0.3."""
    statistics = JudgeStatistics(comparisons=2, questions=4, **changes)
    for bias in (0.1, 0.3):
        statistics.bias.add(bias)
        statistics.same_place.add(1.0)
        statistics.mass.add(0.9)
    return statistics


def test_a_figure_that_an_iteration_lacks_is_a_dash() -> None:
    table = make_judge_table(
        {"start": None, "iteration 0": make_statistics(), "iteration 1": make_statistics(requests=4, price=0.5)}
    )
    assert table is not None
    assert table.columns[:4] == ["policy", "judgements", "bias", "same place"]
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    # Unbiased standard deviation of 0.1 and 0.3 is 0.141421; 1.96 · 0.141421 / √2 = 0.196.
    assert (first["policy"], first["bias"], first["consistency"]) == ("iteration 0", "0.200±0.196", "0.000±0.000")
    assert (first["mass"], first["requests"], first["price"]) == ("0.900±0.000", "-", "-")
    assert (second["requests"], second["price"]) == ("4 (0 cached)", "0.5")
    assert make_judge_table({"start": None}) is None


def write_judged_run(folder: Path, seed: int, bias: float) -> Path:
    """Write the ledger of a run with one shard of a judge's comparisons."""
    config = RunConfig(
        str(folder),
        1,
        seed,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=FeedbackConfig(rows="judged_pairs"),
        judge=JudgeConfig("opponent"),
        objective=DpoObjective(),
    )
    layout = RunLayout(folder)
    folder.mkdir(parents=True)
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    ledger.append("run", version=__version__, keys=fingerprint(config))
    statistics = JudgeStatistics(comparisons=1, bias=Mean(1, bias, bias * bias))
    layout.iteration(0).folder.mkdir(parents=True)
    ledger.append("iterations/000/judgements/0", sha256="s", judge=dataclasses.asdict(statistics))
    return folder


def test_the_table_of_several_seeds_has_the_judge_over_all_their_comparisons(tmp_path: Path) -> None:
    folders = [write_judged_run(tmp_path / str(seed), seed, bias) for seed, bias in enumerate((0.1, 0.3))]
    shown = io.StringIO()
    aggregate([str(folder) for folder in folders], Console(file=shown))
    [line] = [line for line in shown.getvalue().splitlines() if "iteration 0" in line]
    assert line.split()[:4] == ["iteration", "0", "2", "0.200±0.196"]


def test_the_folder_of_a_sweep_stands_for_its_runs_and_gives_the_table_of_them(tmp_path: Path) -> None:
    folders = [write_judged_run(tmp_path / f"seed={seed}", seed, 0.1) for seed in (2, 10)]
    tables = []
    for run_dirs in ([str(folder) for folder in folders], [str(tmp_path)]):
        shown = io.StringIO()
        aggregate(run_dirs, Console(file=shown, width=200))
        tables.append(" ".join(shown.getvalue().split()))
    assert "mean ± standard deviation over seeds 2, 10" in tables[0]
    title = "seeds 2, 10"
    assert tables[0][tables[0].index(title) :] == tables[1][tables[1].index(title) :]


def test_two_runs_of_one_seed_are_not_called_two_seeds(tmp_path: Path) -> None:
    folders = [write_judged_run(tmp_path / name, 7, 0.1) for name in ("a", "b")]
    shown = io.StringIO()
    aggregate([str(folder) for folder in folders], Console(file=shown, width=200))
    assert "over 2 runs, of which some have the same seed (7)" in " ".join(shown.getvalue().split())


def test_the_page_has_a_section_on_the_judge(tmp_path: Path) -> None:
    folder = write_judged_run(tmp_path / "run", 0, 0.125)
    write_report([str(folder)], None)
    page = (folder / "report.html").read_text()
    assert '<a href="#judge">' in page
    assert "<td>0.125±0.000</td>" in page
