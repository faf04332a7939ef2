"""Trackers: what was logged is what their own readers find."""

import json
from pathlib import Path

import pytest

from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.report.console import Reporter
from spin.report.trackers import Trackers


def config(run_dir: Path, *names: str) -> RunConfig:
    feedback = FeedbackConfig()
    return RunConfig(
        str(run_dir),
        model=ModelConfig("m"),
        data=DataConfig("d"),
        feedback=feedback,
        objective=SpinObjective(),
        tracking=list(names),
    )


def log(reporter: Reporter) -> None:
    """Log a warm start and an iteration of two steps and a benchmark each, and a baseline step."""
    for step, loss in ((1, 2.0), (2, 1.0)):
        reporter.metrics_log.append("start/policy", kind="train", step=step, steps=2, loss=loss)
    reporter.metrics_log.append("start/benchmark", kind="benchmark", policy="start", nll=0.5, win_rate=None)
    reporter.metrics_log.append("iterations/000/samples", kind="samples", rows=4, dropped={"identical": 3})
    for step, loss in ((1, 0.75), (2, 0.5)):
        reporter.metrics_log.append("iterations/000/policy", kind="train", step=step, steps=2, loss=loss)
    reporter.metrics_log.append("iterations/000/benchmark", kind="benchmark", policy="iterations/000", nll=0.25)
    reporter.metrics_log.append("baseline/000/policy", kind="train", step=1, steps=1, loss=0.125)


def test_tensorboards_own_reader_finds_every_number_at_the_step_it_belongs_to(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed (pip install tensorboard)",
    )
    reporter = Reporter(tmp_path / "metrics.jsonl", tmp_path / "now.json")
    trackers = Trackers(config(tmp_path, "tensorboard"), tmp_path / "tracking", [])
    reporter.metrics_log.sinks.append(trackers.log)
    log(reporter)
    trackers.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tracking" / "tensorboard"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["start/train/loss"] == [(1, 2.0), (2, 1.0)]
    assert found["train/loss"] == [(3, 0.75), (4, 0.5)]  # steps go on where the warm start ended
    assert found["benchmark/nll"] == [(2, 0.5), (4, 0.25)]  # the start's figures open the curve
    assert found["samples/dropped.identical"] == [(2, 3.0)]
    assert found["baseline/train/loss"] == [(5, 0.125)]
    assert "benchmark/win_rate" not in found


def test_a_resumed_run_goes_on_at_the_step_where_it_stopped(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed (pip install tensorboard)",
    )
    reporter = Reporter(tmp_path / "metrics.jsonl", tmp_path / "now.json")
    log(reporter)
    trackers = Trackers(config(tmp_path, "tensorboard"), tmp_path / "tracking", reporter.metrics_log.rows())
    trackers.log({"unit": "baseline/001/policy", "kind": "train", "time": 0.0, "step": 1, "steps": 1, "loss": 3.0})
    trackers.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tracking" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("baseline/train/loss")] == [(6, 3.0)]


def test_weights_and_biases_offline_leaves_a_record_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    reporter = Reporter(tmp_path / "metrics.jsonl", tmp_path / "now.json")
    trackers = Trackers(config(tmp_path, "wandb"), tmp_path / "tracking", [])
    reporter.metrics_log.sinks.append(trackers.log)
    log(reporter)
    trackers.finish()
    [record] = tmp_path.glob("tracking/wandb/offline-run-*/*.wandb")
    assert b"baseline/train/loss" in record.read_bytes()


def test_without_a_tracker_the_rows_are_in_the_file_alone(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "metrics.jsonl", tmp_path / "now.json")
    log(reporter)
    assert [json.loads(line)["unit"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][
        -1
    ] == "baseline/000/policy"
    assert len(reporter.metrics_log.rows()) == 8
