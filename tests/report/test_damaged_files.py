"""Commands that read a run name a damaged file, instead of leaving its content out."""

from pathlib import Path

import pytest

from spin import __version__
from spin.cli.commands import run_command
from spin.errors import ConfigError
from spin.report.benchmark_files import read_lm_eval
from spin.report.metrics_log import MetricsLog
from spin.report.run_report import collect
from spin.run_dir.files import file_sha256, write_json
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import read_state
from spin.run_dir.store import RunStore
from tests.report.test_page import write_run

DAMAGE = {
    "config.yaml": ("run_dir: [1, ", "config.yaml cannot be read"),
    "error.json": ('{"message": ', "error.json cannot be read"),
    "metrics.jsonl": ('{"unit": "a", "kind": "train"}\nnoise\n', "metrics.jsonl:2 is no row of metrics ('noise"),
    "iterations/000/config.yaml": ("run_dir: [1, ", "config.yaml cannot be read"),
    "ledger.jsonl": ("noise\n", "ledger.jsonl:1 is no ledger line"),
}
READERS = {
    "config.yaml": ("status", "report"),
    "iterations/000/config.yaml": ("status", "report"),
    "error.json": ("status",),
    "ledger.jsonl": ("status", "table"),
}
"""The commands that read a file; `report` for the others."""


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    run_dir = write_run(tmp_path / "run")
    content, expected = DAMAGE[name]
    (run_dir / name).write_text(content)
    for command in READERS.get(name, ("report",)):
        with pytest.raises(ConfigError) as caught:
            run_command(command, [f"run_dir={run_dir}"])
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_last_line_of_metrics_that_a_kill_left_incomplete_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"unit": "a"}\n{"unit": "b", "lo')
    assert MetricsLog(path).rows() == [{"unit": "a"}]
    MetricsLog(path).keep_finished(lambda row: True)
    assert path.read_text() == '{"unit": "a"}\n'


@pytest.mark.parametrize("name", ["benchmark.json", "heldout/judged.parquet"])
@pytest.mark.parametrize("content", ['{"nll": 0.0}', None])
def test_an_altered_or_lost_file_of_a_benchmark_is_named_in_one_line_by_every_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None
) -> None:
    run_dir = write_run(tmp_path / "run")
    Ledger(run_dir / "ledger.jsonl").append("run", keys={"seed": "0"}, version=__version__)
    path = run_dir / "iterations/000" / name
    problem = "was altered since it was finished"
    if content is None:
        path.unlink()
        problem = "is gone"
    else:
        path.write_text(content)
    line = f"warning: {path} {problem}; it is left out, and the same spin run command makes it again"
    assert collect(RunStore(run_dir), "run").warnings == [line]
    run_command("table", [f"run_dir={run_dir}"])
    assert capsys.readouterr().out.splitlines().count(line) == 1
    run_command("status", [f"run_dir={run_dir}"])
    assert f"damaged    {path} {problem}" in capsys.readouterr().out.splitlines()


def test_altered_results_of_the_harness_are_left_out_of_the_table(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    layout = RunLayout(run_dir)
    ledger = Ledger(layout.ledger)
    state = read_state(layout, ledger)
    stage = layout.iteration(0)
    assert read_lm_eval(state, stage) == {}
    write_json(stage.lm_eval, {"hellaswag": {"acc": 0.5}})
    ledger.append("iterations/000/lm_eval", sha256=file_sha256(stage.lm_eval))
    assert read_lm_eval(state, stage) == {"hellaswag": {"acc": 0.5}}
    write_json(stage.lm_eval, {"hellaswag": {"acc": 0.9}})
    assert read_lm_eval(state, stage) == {}
