"""The live view: a progress bar on a terminal, whole lines elsewhere."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from spin.report.console import Reporter
from spin.report.terminal import show_table


def reporter(folder: Path, terminal: bool) -> tuple[Reporter, io.StringIO]:
    output = io.StringIO()
    return Reporter(
        folder / "metrics.jsonl",
        folder / "now.json",
        Console(file=output, force_terminal=terminal, width=120, highlight=False),
    ), output


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_draws_a_bar_with_rate_on_a_terminal_and_is_quiet_in_a_log(tmp_path: Path, terminal: bool) -> None:
    live, output = reporter(tmp_path, terminal)
    with live.stage("iteration 0 generate", 4, "shards") as meter:
        meter.advance(1, "256 samples")
        now = json.loads((tmp_path / "now.json").read_text())
    assert (now["label"], now["total"], now["unit"]) == ("iteration 0 generate", 4, "shards")
    assert not (tmp_path / "now.json").exists()
    drawn = output.getvalue()
    if terminal:
        assert "iteration 0 generate" in drawn
        assert "1/4" in drawn
        assert "shards/s  256 samples" in drawn
    else:
        assert drawn.strip() == ""
        live.print("iteration 0 generate  done")
        assert output.getvalue().strip().splitlines() == ["iteration 0 generate  done"]


def test_a_table_in_a_log_is_as_wide_as_its_figures() -> None:
    output = io.StringIO()
    show_table(Console(file=output, width=40), "title", ["policy", *"abcdefgh"], [["iteration 0", *["0.814±.034"] * 8]])
    assert output.getvalue().count("0.814±.034") == 8
