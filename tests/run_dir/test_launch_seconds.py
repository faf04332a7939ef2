"""Seconds of launches that end in different ways."""

import time
from pathlib import Path

import pytest

from spin.report.tables import describe_time
from spin.run_dir.launch_seconds import record_seconds, timed_launch
from spin.run_dir.ledger import Ledger
from spin.run_dir.run_state import RunState
from spin.run_dir.unit import LAUNCHES


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_launch_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    # The first launch takes 100 - 60 = 40 s, the second 107 - 100 = 7 s.
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    with pytest.raises(error), timed_launch(ledger, 60.0):
        raise error
    assert "seconds" not in ledger
    monkeypatch.setattr(time, "perf_counter", lambda: 107.0)
    with timed_launch(Ledger(ledger.path), 100.0):
        pass
    ledger = Ledger(ledger.path)
    record_seconds(ledger)
    assert ledger.get("seconds") == {"unit": "seconds", "total": 47.0, "left_out": 0}


def test_a_killed_launch_is_named_and_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("seconds", total=30.0)
    # This line is all that a killed launch leaves behind.
    killed = timed_launch(ledger, 0.0)
    killed.__enter__()
    resumed = Ledger(ledger.path)
    assert resumed.get(LAUNCHES) == {"unit": LAUNCHES, "total": 30.0, "left_out": 0, "running": True}
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    with timed_launch(resumed, 0.0):
        pass
    record_seconds(resumed)
    assert resumed.get("seconds") == {"unit": "seconds", "total": 35.0, "left_out": 1}

    text = describe_time(RunState([], resumed), [], 35.0, 1)
    assert text.startswith("wall clock 35 s without 1 killed launch,")
    assert "neither" not in text
    assert describe_time(RunState([], resumed), [], 35.0).endswith("neither 35 (100%)")
