"""What `spin status` says of run directories whose ledger is known."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from spin.config.benchmark import BenchmarkConfig
from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig, to_plain
from spin.errors import ConfigError
from spin.report.status import describe
from spin.run_dir.files import file_sha256, write_text
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.remote import Remote
from spin.run_dir.reward_statistics import RewardStatistics
from spin.run_dir.store import RunStore


def write_run(layout: RunLayout, iterations: int, feedback: FeedbackConfig | None = None) -> Ledger:
    """A run with two shards an iteration, of which nothing is done."""
    config = RunConfig(
        str(layout.root),
        iterations,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        generation=GenerationConfig(shard_size=3),
        feedback=feedback or FeedbackConfig(),
        objective=SpinObjective(),
        benchmark=BenchmarkConfig(),
    )
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    ledger.append("data", sha256={}, train=5, heldout=2)
    return ledger


def test_a_stopped_run_names_what_is_next_and_how_long_it_takes_at_the_pace_of_what_is_done(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    ledger = write_run(layout, iterations=3)
    ledger.append("start/benchmark", seconds=100.0)
    ledger.append("iterations/000/config", keys={})
    ledger.append("iterations/000/samples", tokens=9, seconds=60.0, beside=False)
    ledger.append("iterations/000/pairs", tokens=0, seconds=30.0, beside=False)
    ledger.append("iterations/000/policy", digest="d", opponent="m", steps=4, tokens=9, seconds=600.0)
    ledger.append("iterations/000/benchmark", seconds=10.0)
    ledger.append("iterations/001/config", keys={})
    ledger.append("iterations/001/samples/0", sha256="s")
    ledger.append("iterations/001/samples/1", sha256="s")
    ledger.append("iterations/001/trainer", states={"7": {"digest": "t", "source": "r", "chunks": 1}})
    found = describe(RunStore(tmp_path))
    assert found["state"].startswith("stopped")
    assert found["done"] == "start, iteration 0"
    assert found["next"] == "iteration 1 score, train, benchmark (training goes on after step 7); then iteration 2"
    # 30 + 600 + 10 seconds for iteration 1, and 60 more for iteration 2.
    assert found["time left"] == "about 22 min, at the pace of what is done"


def test_the_work_of_reward_sources_is_named_between_generation_and_scoring(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    ledger = write_run(layout, 2, FeedbackConfig(rows="best_worst_pairs", rewards=["exact_match"]))
    ledger.append("start/benchmark", seconds=100.0)
    ledger.append("iterations/000/config", keys={})
    ledger.append("iterations/000/samples/0", sha256="s")
    ledger.append("iterations/000/samples/1", sha256="s")
    ledger.append("iterations/000/samples", tokens=9, seconds=60.0, beside=False)
    ledger.append("iterations/000/rewards/exact_match/0", sha256="r")
    found = describe(RunStore(tmp_path))
    assert found["next"] == "iteration 0 reward, score, train, benchmark; then iteration 1"
    assert found["time left"].startswith("not known before the first benchmark, reward, score, train is done")


def test_rewards_and_dropped_rows_are_added_up_over_the_shards_of_each_iteration(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    ledger = write_run(layout, 2, FeedbackConfig(rows="right_wrong_pairs", rewards=["exact_match"]))
    assert "rewards" not in describe(RunStore(tmp_path))
    ledger.append("iterations/000/config", keys={})
    # Mean rewards of the prompts: 1, ½ and 0 in the first shard, 0 and ½ in the second.
    first = asdict(RewardStatistics(3, 1.5, 1.25, 1, 1))
    second = asdict(RewardStatistics(2, 0.5, 0.25, 0, 1))
    ledger.append("iterations/000/pairs/0", sha256="p", dropped={"all_right": 1, "all_wrong": 1}, rewards=first)
    ledger.append("iterations/000/pairs/1", sha256="p", dropped={"all_wrong": 1}, rewards=second)
    found = describe(RunStore(tmp_path))
    # Mean 2/5, variance (1.5 − 5 · 0.16) / 4 = 0.175, half interval 1.96 · √(0.175 / 5) = 0.367.
    assert found["rewards"] == "iteration 0 reward 0.400±0.367 (20% of prompts all right, 40% all wrong)"
    assert found["dropped"] == "iteration 0: 1 all_right, 2 all_wrong"


def test_a_run_that_has_just_begun_knows_no_time_and_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    write_run(RunLayout(tmp_path), iterations=3)
    found = describe(RunStore(tmp_path))
    assert found["done"] == "no stage yet"
    assert found["next"] == "start benchmark; then iteration 0 to 2"
    assert found["time left"] == "not known before the first benchmark, generate, score, train is done"
    with pytest.raises(ConfigError, match="holds no run"):
        describe(RunStore(tmp_path / "other"))


def test_work_of_which_nothing_is_done_takes_as_long_as_estimated_at_the_launch(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    ledger = write_run(layout, iterations=2)
    ledger.append("start/benchmark", seconds=100.0)
    ledger.append("expected", seconds={"generate": 30.0, "train": 90.0, "benchmark": 15.0})
    # No rate is known for scoring; the rest is 2 · (30 + 90 + 15) seconds.
    assert describe(RunStore(tmp_path))["time left"] == (
        "not known before the first score is done; 4 min without, "
        "with the estimate of the launch for benchmark, generate, train"
    )
    ledger.append("expected", seconds={"generate": 30.0, "score": 15.0, "train": 90.0, "benchmark": 15.0})
    ledger.append("iterations/000/config", keys={})
    ledger.append("iterations/000/samples", tokens=9, seconds=60.0, beside=False)
    ledger.append("iterations/000/samples/0", sha256="s")
    ledger.append("iterations/000/samples/1", sha256="s")
    # Generation is measured: 60 for iteration 1, and twice 15 + 90 + 15.
    assert describe(RunStore(tmp_path))["time left"] == (
        "about 5 min, with the estimate of the launch for benchmark, score, train"
    )


def test_the_baseline_and_the_url_are_named(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    write_run(layout, iterations=2)
    assert describe(RunStore(tmp_path))["run"] == f"{tmp_path}: spin, 2 iterations"
    config = yaml.safe_load(layout.config.read_text())
    layout.config.write_text(yaml.safe_dump({**config, "baseline": "sft"}))
    store = RunStore(tmp_path, Remote("s3://bucket/run", tmp_path))
    expected = "s3://bucket/run: spin, 2 iterations, then as many of the baseline (sft)"
    assert describe(store)["run"] == expected


def record_benchmark(ledger: Ledger, stage: Stage) -> None:
    """Write the files of a benchmark, and its line."""
    write_text(stage.benchmark, '{"nll": 1.0}')
    write_text(stage.answers("judged"), "answers")
    digests = {"sha256": file_sha256(stage.benchmark), "judged": file_sha256(stage.answers("judged"))}
    ledger.append(f"{stage.name}/benchmark", **digests, seconds=1.0)


def test_a_finished_run_is_complete_as_long_as_its_last_policy_is_there(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    ledger = write_run(layout, iterations=2)
    record_benchmark(ledger, layout.start)
    for index in (0, 1):
        name = f"iterations/{index:03d}"
        ledger.append(f"{name}/config", keys={})
        ledger.append(f"{name}/policy", digest="d", opponent="m", steps=4, tokens=9, seconds=6.0)
        record_benchmark(ledger, layout.iteration(index))
    policy = layout.iteration(1).policy
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(b"weights")
    # That of iteration 0 is gone too, but iteration 1 was made with it: the result stands.
    assert describe(RunStore(tmp_path))["state"] == "complete"
    layout.start.benchmark.write_text("{}")
    assert describe(RunStore(tmp_path))["state"].startswith("not complete: files of a benchmark are damaged")
    (policy / "model.safetensors").unlink()
    found = describe(RunStore(tmp_path))["state"]
    assert found == f"not complete: {policy} is gone; the same spin run command trains it again"
