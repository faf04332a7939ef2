"""The measured speed of a model, and the times that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spin.config.adapter import AdapterConfig, AdapterMethod
from spin.config.training import Layout, TrainingConfig
from spin.data.builtin import write_tiny_model
from spin.data.parquet import write_rows
from spin.data.records import Prompt
from spin.models.model_size import count_weights
from spin.preflight import speed_probe
from spin.preflight.speed_probe import DECODE_FACTOR, ENGINE_TOKEN_SECONDS, SpeedProbe, list_groups, probe_speed
from spin.run_dir.paths import RunLayout
from tests.preflight.test_estimate import config_of, estimate_of


def write_rows_of(layout: RunLayout, count: int) -> None:
    rows = [Prompt(number, [1, 2, 3, 4], [5, 6], "stop", "p", "r", "r") for number in range(count)]
    write_rows(layout.prompts("train"), Prompt, rows)


def test_rows_are_taken_until_the_pass_is_long_enough(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert list_groups(layout, 100) == []
    write_rows_of(layout, 10)
    # A prompt of 4 tokens and two completions of 2: 3 groups have 24 tokens.
    groups = list_groups(layout, 24)
    assert len(groups) == 3
    assert groups[0].completions == [[5, 6], [6, 5]]
    assert len(list_groups(layout, 1)) == 2
    assert len(list_groups(layout, 1000)) == 10


@pytest.mark.parametrize("adapted", [False, True])
def test_the_built_in_model_is_measured_in_the_layout_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    monkeypatch.setattr(speed_probe, "MAX_PASSES", 1)
    config, layout = config_of(tmp_path / "run"), RunLayout(tmp_path / "run")
    if adapted:
        config.adapter = AdapterConfig(method=AdapterMethod.lora)
    write_tiny_model(tmp_path / "model", 0)
    write_rows_of(layout, 20)
    weights = count_weights(tmp_path / "model")
    probe = probe_speed(config, tmp_path / "model", layout, weights)
    assert probe is not None
    assert (probe.layout, probe.has_fast_layers, probe.note) == ("shared", True, None)
    assert 1e6 < probe.forward_flops < 1e13
    assert 1e6 < probe.train_flops < 1e13
    assert "layout shared, the fast layers of spin" in probe.describe()


def test_a_layout_that_was_asked_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_probe, "MAX_PASSES", 1)
    config, layout = config_of(tmp_path / "run"), RunLayout(tmp_path / "run")
    config.training = TrainingConfig(layout=Layout.padded)
    write_tiny_model(tmp_path / "model", 0)
    write_rows_of(layout, 4)
    probe = probe_speed(config, tmp_path / "model", layout, count_weights(tmp_path / "model"))
    assert probe is not None
    assert "layout padded, the layers of transformers" in probe.describe()


def test_a_model_that_would_take_minutes_is_not_measured(tmp_path: Path) -> None:
    # 8 s at 40 GFLOP/s are 320 G operations: for 128 tokens and six operations, 417 M weights.
    layout = RunLayout(tmp_path)
    write_rows_of(layout, 4)
    assert probe_speed(config_of(tmp_path), tmp_path / "missing", layout, 1_000_000_000) is None


def test_each_kind_of_work_has_the_measured_speed() -> None:
    probe = SpeedProbe("shared", True, None, forward_flops=2e9, train_flops=3e9, weights=1_000_000)
    assert probe.find_flops("train") == 3e9
    assert probe.find_flops("score") == 2e9
    # A token takes 2e6 / 2e9 = 1 ms in the model.
    generating = 2e6 / (DECODE_FACTOR * 1e-3 + ENGINE_TOKEN_SECONDS)
    assert probe.find_flops("generate") == pytest.approx(generating)
    assert probe.find_flops("benchmark") == pytest.approx(3 / (1 / generating + 1e-9))


def test_the_estimate_goes_at_the_measured_speed_and_names_a_range(tmp_path: Path) -> None:
    estimate = estimate_of(config_of(tmp_path, iterations=1))
    probed = replace(estimate, probe=SpeedProbe("shared", True, None, 1e4, 2e4, weights=1000))
    # 200 tokens of pairs, six operations for each of 1,000 weights, at 2e4 a second.
    assert probed.seconds["iteration 0"]["train"] == pytest.approx(60)
    assert probed.seconds["iteration 0"]["score"] == pytest.approx(40)
    [line] = [line for line in probed.lines() if line.startswith("estimate, time")]
    total = sum(probed.seconds["iteration 0"].values()) + sum(probed.seconds["start"].values())
    # A generated token takes 2.5 · 0.2 s: 50 s, and two benchmarks of 60 · 0.5 + 120 · 0.2 = 54 s.
    assert total == pytest.approx(258, abs=0.1)
    assert "4 min (3 min to 6 min) besides the start-up" in line
    assert "at the speed of this machine, measured just now" in line
    [plain] = [line for line in estimate.lines() if line.startswith("estimate, time")]
    assert " to " not in plain.partition("besides")[0]
