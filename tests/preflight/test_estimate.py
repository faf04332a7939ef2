"""What a run is expected to take, on numbers small enough to follow by hand."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import Dtype, Optimizer, TrainingConfig
from spin.data.builtin import write_tiny_model
from spin.data.parquet import write_rows
from spin.data.records import Prompt
from spin.errors import ConfigError
from spin.preflight.devices import Device
from spin.preflight.estimate import estimate
from spin.preflight.footprint import (
    LOGITS_BYTES,
    RowCounts,
    Shape,
    disk_left,
    generation_memory,
    measure_rows,
    training_memory,
)
from spin.preflight.pace import STEP_SECONDS, TRAINING_SHARE, StageTime, Throughput, measured_pace, stage_times
from spin.report.console import format_duration
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout

SHAPE = Shape(
    1000,
    layers=4,
    kv_values=16,
    hidden=4,
    inner=8,
    config=SimpleNamespace(hidden_size=4, intermediate_size=8, num_hidden_layers=4),
)
CPU = Device("CPU", "cpu", 2, 1 << 30, 1e9, 1e9)
ROWS = {"train": RowCounts(10, 5.0, 5.0), "heldout": RowCounts(2, 5.0, 5.0)}


def config_of(run_dir: Path, iterations: int = 2, replay: int = 0) -> RunConfig:
    feedback = FeedbackConfig(_target_="spin.feedback.ground_truth.GroundTruth")
    return RunConfig(
        str(run_dir),
        iterations,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=feedback,
        objective=SpinObjective(),
        replay=replay,
    )


def write_prompts(layout: RunLayout) -> None:
    rows = [Prompt(0, [1, 2], [3], "stop", "p", "r", "r"), Prompt(1, [4], [5, 6], "stop", "q", "s", "s")]
    for name in ("train", "heldout"):
        write_rows(layout.prompts(name), Prompt, rows)


def test_prepared_rows_are_measured_by_their_lengths(tmp_path: Path) -> None:
    write_prompts(RunLayout(tmp_path))
    assert measure_rows(RunLayout(tmp_path)) == dict.fromkeys(("train", "heldout"), RowCounts(2, 1.5, 1.5))


def test_training_memory_is_weights_gradients_moments_and_one_pair(tmp_path: Path) -> None:
    config, training = config_of(tmp_path), TrainingConfig(workers=4)
    # A token keeps, in each of 4 layers, two streams (2 × 4 × 4 bytes) and 4 × 4 + 2 × 8 numbers
    # of 4 bytes, and once 4 × 3 × 8 + 4 × 4 × 4: 800 bytes.
    pair = (256 + 2 * 256) * 800 + LOGITS_BYTES
    assert training_memory(SHAPE, config, training, sharded=False) == 16 * 1000 + pair
    assert (
        training_memory(SHAPE, config, replace(training, optimizer=Optimizer.rmsprop), sharded=False)
        == 12 * 1000 + pair
    )
    assert (
        training_memory(SHAPE, config, training, sharded=True) == 4 * 1000 + 4 * 500 + pair
    )  # a quarter of the states, and two of four layers whole
    assert (
        training_memory(SHAPE, config, replace(training, micro_batch_tokens=1000), sharded=False)
        == 16 * 1000 + 1000 * 800 + LOGITS_BYTES
    )
    config.model.dtype = Dtype.bfloat16
    half = (256 + 2 * 256) * (4 * 96 + 112) + LOGITS_BYTES
    assert training_memory(SHAPE, config, training, sharded=False) == (16 + 2) * 1000 + half


def test_an_engine_holds_its_part_of_the_weights_and_caches_in_what_is_left(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.generation = GenerationConfig(tensor_parallel_size=2, gpu_memory_utilization=0.5)
    gpu = Device("A100", "gpu", 2, 100_000, 1e12, 1e12)
    weights, cache, room = generation_memory(SHAPE, config, gpu)
    assert (weights, cache) == (2000, 48_000)
    assert room == 48_000 // (16 * 4 / 2 * 512)
    assert generation_memory(SHAPE, config, replace(gpu, memory=3000))[1:] == (0, 0)


def test_training_takes_six_operations_a_weight_and_token_and_eight_with_checkpointing(tmp_path: Path) -> None:
    pace = Throughput(SHAPE, config_of(tmp_path), CPU)
    steps = STEP_SECONDS["cpu"] * 20 / 64
    seconds = 6 * 1000 * (20 * 10) / (1e9 * TRAINING_SHARE["cpu"])  # 10 rows twice, 3 + 7 tokens each
    assert pace.training(10, TrainingConfig(epochs=2), 3, 7, halves=2) == pytest.approx(seconds + steps)
    assert pace.training(10, TrainingConfig(epochs=2, gradient_checkpointing=True), 3, 7, halves=2) == pytest.approx(
        seconds * 8 / 6 + steps
    )
    assert pace.training(10, TrainingConfig(epochs=2, workers=2), 3, 7, halves=2) == pytest.approx(seconds / 2 + steps)


def test_a_replayed_iteration_is_scored_and_trained_twice_as_long(tmp_path: Path) -> None:
    layout, ledger = RunLayout(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    config = config_of(tmp_path, replay=1)
    start, first, second = stage_times([config] * 2, ROWS, layout, ledger, Throughput(SHAPE, config, CPU))
    assert (second.generation, second.scoring, second.training) == pytest.approx(
        (first.generation, 2 * first.scoring, 2 * first.training)
    )
    assert start.total() == start.benchmark == first.benchmark > 0


def test_a_resumed_run_goes_at_its_own_pace(tmp_path: Path) -> None:
    layout, ledger = RunLayout(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    config = config_of(tmp_path, replay=1)
    ledger.append("iterations/000/samples/0", rows=10, tokens=100)
    ledger.append("iterations/000/samples", tokens=100, seconds=10.0)
    ledger.append("iterations/000/pairs/0", rows=10)
    ledger.append("iterations/000/pairs", tokens=0, seconds=5.0)
    ledger.append("iterations/000/policy", tokens=400, seconds=20.0)
    ledger.append("iterations/000/benchmark", seconds=7.0)
    ledger.append("start/benchmark", seconds=6.0)
    pace = measured_pace(Throughput(SHAPE, config, CPU), [config] * 2, layout, ledger)
    first, second = stage_times([config] * 2, ROWS, layout, ledger, pace)
    assert first.total() == 0
    assert second.generation == 10 * 10 / 10  # 10 answers of 10 tokens at 10 a second
    assert second.scoring == 20 / 2
    assert second.training == 20 * (2 * 5 + 5 + 10) / 20
    assert second.benchmark == 7


def test_what_is_promoted_or_saved_needs_no_disk_again(tmp_path: Path) -> None:
    layout, ledger = RunLayout(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    iteration_configs = [config_of(tmp_path)] * 2
    disk = disk_left(iteration_configs, SHAPE, ROWS, layout, ledger)
    assert (disk.policies, disk.policy, disk.states, disk.state) == (
        2,
        4000,
        2,
        12_000,
    )  # AdamW: weights and two moments; the new state beside the kept one
    assert disk.total == 2 * 4000 + 2 * 12_000 + disk.rows
    ledger.append("iterations/000/policy", digest="x")
    (layout.iteration(1).trainer / "step-000004").mkdir(parents=True)
    later = disk_left(iteration_configs, SHAPE, ROWS, layout, ledger)
    assert (later.policies, later.states, later.rows) == (1, 1, disk.rows // 2)
    never = [replace(config, training=TrainingConfig(checkpoint_every="0")) for config in iteration_configs]
    assert disk_left(never, SHAPE, ROWS, layout, ledger).states == 0


def test_too_little_disk_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, layout = config_of(tmp_path / "run"), RunLayout(tmp_path / "run")
    write_tiny_model(tmp_path / "model", 0)
    write_prompts(layout)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 25 << 20)
    )  # 2 policies of 3.1 MiB and 2 states of 9.4 are 25.2
    found = estimate(config, [config] * 2, layout, Ledger(layout.ledger), tmp_path / "model", layout)
    with pytest.raises(
        ConfigError,
        match=r"25\.0 MiB free, but 25\.2 MiB are to be written: 2 policies of 3\.1 MiB, 2 trainer states of 9\.4 MiB",
    ):
        found.check_disk()
    replace(found, free=26 << 20).check_disk()


def test_with_overlap_a_stage_takes_as_long_as_its_longest_part() -> None:
    time = StageTime("iteration 0", generation=5, scoring=2, training=6, benchmark=1)
    assert (time.total(), time.total(overlapped=True)) == (14, 7)


def test_spans_have_two_figures() -> None:
    assert [format_duration(seconds) for seconds in (4.2, 89, 120, 5000, 36_000)] == [
        "4 s",
        "89 s",
        "2 min",
        "83 min",
        "10.0 h",
    ]
