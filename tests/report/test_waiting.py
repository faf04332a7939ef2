"""Work of unknown length: a clock on a terminal, a line now and then in a log."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from spin.report.console import Reporter
from spin.report.waiting import logged, waiting


def test_a_terminal_shows_what_is_waited_for_and_the_time_and_then_clears_it() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    with waiting(console, "starting Ray"):
        time.sleep(0.3)
    drawn = output.getvalue()
    assert "starting Ray" in drawn
    assert "0:00:00" in drawn
    # The line is drawn again, so that something moves, and erased at the end.
    assert drawn.count("starting Ray") > 1
    assert drawn.endswith("\x1b[2K\x1b[?25h")


def test_a_log_gets_a_line_an_interval_and_none_after_the_end() -> None:
    output = io.StringIO()
    with logged(Console(file=output, width=80), lambda: "still loading", seconds=0.1):
        time.sleep(0.35)
    text = output.getvalue()
    assert set(text.splitlines()) == {"still loading"}
    assert text.count("\n") >= 2
    time.sleep(0.2)
    assert output.getvalue() == text


def test_short_work_leaves_no_line_in_a_log() -> None:
    output = io.StringIO()
    with waiting(Console(file=output), "starting Ray"):
        pass
    assert output.getvalue() == ""


def test_a_stage_says_in_a_log_how_far_it_is(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    reporter = Reporter(tmp_path / "metrics.jsonl", tmp_path / "now.json", console)
    with reporter.stage("iteration 0 train", 0, "steps", "loading the policy") as progress:
        assert progress.describe() == "iteration 0 train          0 steps in 0 s, loading the policy"
        progress.advance(2, "loss 0.5000", total=4)
        # As much is left as is done, which took no time.
        assert progress.describe() == "iteration 0 train          2 of 4 steps in 0 s, 0 s left, loss 0.5000"


def test_an_interrupt_while_a_clock_starts_leaves_the_cursor_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    hide = console.show_cursor

    def interrupt(show: bool = True) -> bool:
        hide(show)
        if not show:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(console, "show_cursor", interrupt)
    with pytest.raises(KeyboardInterrupt), waiting(console, "starting Ray"):
        pass
    # "l" hides the cursor, "h" shows it.
    assert output.getvalue() == "\x1b[?25l\x1b[?25h"
