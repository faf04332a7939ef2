"""Commands that read a run name a damaged file, instead of leaving its content out."""

from pathlib import Path

import pytest

from spin.cli.commands import run_command
from spin.errors import ConfigError
from spin.report.metrics_log import MetricsLog
from tests.report.test_page import write_run

DAMAGE = {
    "config.yaml": ("run_dir: [1, ", "config.yaml cannot be read"),
    "error.json": ('{"message": ', "error.json cannot be read"),
    "metrics.jsonl": ('{"unit": "a", "kind": "train"}\nnoise\n', "metrics.jsonl:2 is no row of metrics ('noise"),
    "iterations/000/benchmark.json": ("[1, 2]", "benchmark.json holds no JSON object"),
    "ledger.jsonl": ("noise\n", "ledger.jsonl:1 is no ledger line"),
}
READERS = {"config.yaml": ("status", "report"), "error.json": ("status",), "ledger.jsonl": ("status", "table")}
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
