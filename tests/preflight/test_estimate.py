"""What a run is expected to take, on numbers small enough to follow by hand."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from spin.config.adapter import AdapterConfig, AdapterMethod, Serve
from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig, Placement
from spin.config.objective import KtoObjective, SftObjective, SpinObjective
from spin.config.reward_model import Refresh, RewardModelConfig
from spin.config.run import Baseline, RunConfig
from spin.config.training import Dtype, Optimizer, Sharding, TrainingConfig
from spin.data.builtin import write_tiny_model
from spin.data.parquet import write_rows
from spin.data.records import Prompt
from spin.errors import ConfigError
from spin.models.model_size import training_bytes
from spin.preflight.estimate import Estimate, estimate_run
from spin.preflight.hardware import Device
from spin.report.formatting import format_bytes, format_duration
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.plan import plan_units
from spin.run_dir.run_state import RunState

CPU = Device("CPU", 2, 1 << 30, 1e6)
GPU = Device("GPU", 2, 100_000, 1e6)
ROWS = {"train": 10, "heldout": 2, "warmup": 4}
TOKENS = {"train": 100, "heldout": 20, "warmup": 80}
"""A prompt and its truth have 10 tokens, those of the warm-up 20."""


def config_of(run_dir: Path, iterations: int = 2, replay: int = 0) -> RunConfig:
    feedback = FeedbackConfig()
    return RunConfig(
        str(run_dir),
        iterations,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=feedback,
        objective=SpinObjective(),
        replay=replay,
    )


def estimate_of(config: RunConfig, device: Device = CPU) -> Estimate:
    """The estimate for a model of 1,000 weights, with what the ledger in the run directory says."""
    layout = RunLayout(Path(config.run_dir))
    configs = [config] * config.iterations
    state = RunState(plan_units(layout, config, configs, ROWS), Ledger(layout.ledger))
    return Estimate(config, configs, state, ROWS, TOKENS, 1000, device, free=0)


def write_prompts(layout: RunLayout) -> None:
    rows = [Prompt(0, [1, 2], [3], "stop", "p", "r", "r"), Prompt(1, [4], [5, 6], "stop", "q", "s", "s")]
    for name in ("train", "heldout"):
        write_rows(layout.prompts(name), Prompt, rows)


def test_model_and_sets_are_measured_by_their_files(tmp_path: Path) -> None:
    config, layout = config_of(tmp_path / "run"), RunLayout(tmp_path / "run")
    write_tiny_model(tmp_path / "model", 0)
    write_prompts(layout)
    estimate = estimate_run(config, [config] * 2, layout, Ledger(layout.ledger), tmp_path / "model", layout)
    assert estimate.set_rows == {"train": 2, "heldout": 2}
    assert estimate.set_tokens == {"train": 6, "heldout": 6}
    assert 4 * estimate.weights == pytest.approx((tmp_path / "model" / "model.safetensors").stat().st_size, rel=0.01)


def test_training_memory_is_weights_gradients_and_moments(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.training = TrainingConfig(workers=4)
    assert estimate_of(config).training_memory() == 4 * 4 * 1000
    config.training = TrainingConfig(workers=4, optimizer=Optimizer.rmsprop)
    assert estimate_of(config).training_memory() == 4 * 3 * 1000
    config.training = TrainingConfig(workers=4, sharding=Sharding.full)
    assert estimate_of(config).training_memory() == 4 * 1000


def test_adapters_take_the_memory_of_frozen_weights_and_of_a_few_trained_values(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.adapter = AdapterConfig(method=AdapterMethod.lora)
    estimate = replace(estimate_of(config), adapter_weights=10)
    assert estimate.training_memory() == 4 * 1000 + 16 * 10
    assert list(estimate.disk.values())[0] == 2 * 4 * (1000 + 10)
    config.adapter = AdapterConfig(method=AdapterMethod.lora, base_dtype=Dtype.bfloat16, serve=Serve.adapter)
    estimate = replace(estimate_of(config), adapter_weights=10)
    assert estimate.training_memory() == 2 * 1000 + 16 * 10
    # A state has A, B and two moments.
    assert list(estimate.disk.values())[:2] == [2 * 4 * 10, 2 * 12 * 10]


def test_the_memory_of_a_7b_llama_with_rank_16_is_a_quarter_or_an_eighth_of_full_training() -> None:
    weights, trained = 6_738_415_616, 39_976_960
    assert training_bytes(weights, 0, Dtype.float32, moments=2) == pytest.approx(107.8e9, rel=1e-3)
    assert training_bytes(weights, trained, Dtype.float32, moments=2) == pytest.approx(27.6e9, rel=1e-3)
    assert training_bytes(weights, trained, Dtype.bfloat16, moments=2) == pytest.approx(14.1e9, rel=2e-3)


def test_an_engine_holds_its_part_of_the_weights_and_caches_in_what_is_left(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert estimate_of(config).engine_memory() == (4000, 2**30)
    config.generation = GenerationConfig(tensor_parallel_size=2, gpu_memory_utilization=0.5)
    assert estimate_of(config, GPU).engine_memory() == (2000, 48_000)
    assert estimate_of(config, replace(GPU, memory=3000)).engine_memory() == (2000, 0)
    config.model.dtype = Dtype.bfloat16
    assert estimate_of(config, GPU).engine_memory() == (1000, 49_000)


def test_each_kind_of_work_takes_its_operations_per_weight_and_token(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=1)
    config.training = TrainingConfig(epochs=2)
    stages = estimate_of(config).seconds
    # One token of a forward pass takes 2 × 1,000 operations of the 1e6 a second: 2 ms. The 10
    # samples have 100 tokens with their prompts, the 10 pairs 200; training is 3 forward passes.
    # The 2 × 5 held-out answers have 100 tokens, which are generated and scored twice.
    expected = {"generate": 0.2, "reward": 0.0, "judge": 0.0, "score": 0.4, "train": 2 * 3 * 0.4, "benchmark": 3 * 0.2}
    assert stages["iteration 0"] == pytest.approx(expected)
    # Three steps of 5 rows are one and a half passes over the 10 pairs.
    config.training = TrainingConfig(epochs=2, steps=3, batch_size=5)
    assert estimate_of(config).seconds["iteration 0"]["train"] == pytest.approx(1.5 * 3 * 0.4)
    assert stages["start"] == pytest.approx({**dict.fromkeys(expected, 0.0), "benchmark": 0.6})


def test_training_takes_longer_with_checkpointing_and_shorter_with_workers(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=1)
    config.training = TrainingConfig(gradient_checkpointing=True)
    assert estimate_of(config).seconds["iteration 0"]["train"] == pytest.approx(8 / 2 * 0.4)
    config.training = TrainingConfig(workers=2)
    assert estimate_of(config).seconds["iteration 0"]["train"] == pytest.approx(3 * 0.4 / 2)
    config.training = TrainingConfig(workers=4)  # the CPU has two cores
    assert estimate_of(config).seconds["iteration 0"]["train"] == pytest.approx(3 * 0.4 / 2)


def test_a_replayed_iteration_is_scored_and_trained_twice_as_long(tmp_path: Path) -> None:
    stages = estimate_of(config_of(tmp_path, replay=1)).seconds
    first, second = stages["iteration 0"], stages["iteration 1"]
    assert second == pytest.approx({**first, "score": 2 * first["score"], "train": 2 * first["train"]})


def test_warm_up_baseline_and_sft_train_on_single_completions(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=1)
    config.warmup.enabled = True
    config.baseline = Baseline.sft
    stages = estimate_of(config).seconds
    assert stages["start"]["train"] == pytest.approx(3 * 2e-3 * 80)
    assert stages["baseline 0"]["train"] == pytest.approx(3 * 2e-3 * 100)
    config.objective = SftObjective()
    assert estimate_of(config).seconds["iteration 0"] == pytest.approx(stages["baseline 0"])


def test_best_worst_pairs_are_one_for_each_prompt_and_reward_sources_count_at_their_own_pace(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=1)
    config.feedback = FeedbackConfig(rows="best_worst_pairs", rewards=["exact_match"])
    config.generation.samples_per_prompt = 4
    config.generation.shard_size = 5
    stage = estimate_of(config).seconds["iteration 0"]
    # 40 samples of 10 tokens, but 10 pairs of 20 as with one sample of a prompt.
    assert (stage["generate"], stage["score"], stage["train"]) == pytest.approx((0.8, 0.4, 3 * 0.4))
    assert stage["reward"] == 0.0
    assert "without the 40 rewards, whose rate is not known yet" in estimate_of(config).lines()[1]
    # Samples of 400 tokens and pairs of 200; the rewards take no space worth counting.
    assert list(estimate_of(config).disk.values())[-1] == 600 * 5
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("iterations/000/rewards/exact_match/0", rows=20, seconds=7.0)
    assert estimate_of(config).seconds["iteration 0"]["reward"] == pytest.approx(7.0)  # the second shard
    assert "reward 7 s" in estimate_of(config).lines()[1]
    assert "whose rate is not known yet" not in estimate_of(config).lines()[1]


def test_a_reward_model_that_is_trained_again_learns_from_the_samples_of_all_iterations_so_far(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.feedback = FeedbackConfig(rows="soft_pairs", rewards=["reward_model", "exact_match"])
    config.reward_model = RewardModelConfig(refresh=Refresh.every, refresh_by="exact_match")
    config.generation.samples_per_prompt = 4
    seconds = estimate_of(config).seconds
    # 400 tokens of samples an iteration: 0.8 s to generate, three times as long to train on.
    assert seconds["iteration 0"]["generate"] == pytest.approx(0.8)
    assert seconds["reward model 0"]["train"] == pytest.approx(2.4)
    assert seconds["reward model 1"]["train"] == pytest.approx(4.8)
    # Two policies and two reward models.
    assert next(iter(estimate_of(config).disk)).startswith("4 policies of")


def test_ratings_have_one_completion_and_so_have_the_rows_of_the_baseline(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=1)
    config.feedback = FeedbackConfig(rows="ratings", rewards=["exact_match"])
    config.objective = KtoObjective()
    config.generation.samples_per_prompt = 4
    config.baseline = Baseline.sft
    stages = estimate_of(config).seconds
    # 40 ratings of 10 tokens.
    assert (stages["iteration 0"]["score"], stages["iteration 0"]["train"]) == pytest.approx((0.8, 3 * 0.8))
    assert stages["baseline 0"]["train"] == pytest.approx(3 * 0.8)


def test_a_resumed_run_goes_at_its_own_pace(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("start/benchmark", seconds=6.0)
    ledger.append("iterations/000/samples/0", rows=10, tokens=100, seconds=10.0)
    ledger.append("iterations/000/pairs/0", rows=10, seconds=5.0)
    ledger.append("iterations/000/policy", tokens=400, seconds=20.0)
    ledger.append("iterations/000/benchmark", seconds=7.0)
    stages = estimate_of(config_of(tmp_path, replay=1)).seconds
    # The same samples; twice the pairs, of 400 tokens.
    assert list(stages) == ["iteration 1"]
    expected = {"generate": 10.0, "reward": 0.0, "judge": 0.0, "score": 10.0, "train": 20.0, "benchmark": 7.0}
    assert stages["iteration 1"] == pytest.approx(expected)


def test_finished_shards_are_left_out_and_give_the_pace_of_the_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    config = config_of(tmp_path, iterations=1)
    config.generation.shard_size = 4  # shards of 4, 4 and 2 prompts
    config.generation.replicas = 2
    ledger.append("iterations/000/samples/0", rows=4, tokens=40, seconds=8.0)
    assert estimate_of(config).seconds["iteration 0"]["generate"] == pytest.approx((8 + 4) / 2)


def test_what_is_promoted_or_saved_needs_no_disk_again(tmp_path: Path) -> None:
    layout, ledger = RunLayout(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    config = config_of(tmp_path)
    # AdamW: weights and two moments; the new state beside the kept one. Of each iteration 100
    # tokens of samples and 200 of pairs, 5 bytes each.
    assert list(estimate_of(config).disk.values()) == [2 * 4000, 2 * 12_000, 2 * 300 * 5]
    ledger.append("iterations/000/policy", digest="x")
    (layout.iteration(1).trainer / "step-000004").mkdir(parents=True)
    assert list(estimate_of(config).disk.values()) == [4000, 12_000, 300 * 5]
    config.training = TrainingConfig(checkpoint_every="0")
    assert list(estimate_of(config).disk.values()) == [4000, 300 * 5]
    ledger.append("iterations/001/policy", digest="y")
    assert estimate_of(config).disk == {}


def test_too_little_disk_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, layout = config_of(tmp_path / "run"), RunLayout(tmp_path / "run")
    write_tiny_model(tmp_path / "model", 0)
    write_prompts(layout)
    usage = namedtuple("usage", "total used free")
    # Two policies of 3.1 MiB and two states of 9.4 MiB are 25.2 MiB.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 25 << 20))
    found = estimate_run(config, [config] * 2, layout, Ledger(layout.ledger), tmp_path / "model", layout)
    with pytest.raises(
        ConfigError,
        match=r"25\.0 MiB free, but 25\.2 MiB are to be written: 2 policies of 3\.1 MiB, 2 trainer states of 9\.4 MiB",
    ):
        found.check_disk()
    replace(found, free=26 << 20).check_disk()


def test_with_placement_split_an_iteration_takes_as_long_as_its_longest_work(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    config = config_of(tmp_path)
    ledger.append("start/benchmark", seconds=60.0)
    ledger.append("iterations/000/samples/0", rows=10, tokens=100, seconds=300.0)
    ledger.append("iterations/000/pairs/0", rows=10, seconds=120.0)
    ledger.append("iterations/000/policy", tokens=200, seconds=360.0)
    ledger.append("iterations/000/benchmark", seconds=60.0)
    parts = "(generate 5 min, score 2 min, train 6 min, benchmark 60 s)"
    assert f"14 min besides the start-up {parts}" in estimate_of(config).lines()[1]
    config.cluster.placement = Placement.split
    assert f"7 min besides the start-up {parts}" in estimate_of(config).lines()[1]


def test_durations_and_sizes_have_few_digits() -> None:
    durations = [format_duration(seconds) for seconds in (4.2, 89, 120, 5000, 36_000)]
    assert durations == ["4 s", "89 s", "2 min", "83 min", "10.0 h"]
    assert [format_bytes(count) for count in (0, 100 << 20, 1 << 30, 2500 << 30)] == [
        "0.0 MiB",
        "100.0 MiB",
        "1.0 GiB",
        "2,500.0 GiB",
    ]
