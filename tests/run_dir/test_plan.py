"""The plan of a run and its state, on runs small enough to list every unit by hand."""

import hashlib
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from spin.config.benchmark import BenchmarkConfig, LmEvalConfig
from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import SftObjective, SpinObjective, TspinObjective
from spin.config.reward_model import Refresh, RewardModelConfig
from spin.config.run import Baseline, RunConfig, to_plain
from spin.config.training import WarmupConfig
from spin.errors import ConfigError
from spin.run_dir.facts import KindTotals, PairsFacts, PolicyFacts, RewardsFacts, SamplesFacts, SavedState
from spin.run_dir.files import file_sha256
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.plan import plan_units
from spin.run_dir.run_state import RunState, prepared_rows, read_state
from spin.run_dir.unit import Unit
from spin.run_dir.verification import digest_sources, verify_unit

RANKED = RewardModelConfig(data_path="builtin:letters-ranked")
TWO_SOURCES = FeedbackConfig(
    rows="best_worst_pairs", rewards=["exact_match", {"name": "judge", "_target_": "my.Judge"}]
)
ROWS = {"train": 5, "heldout": 2}


def config_of(run_dir: Path, **changes: Any) -> RunConfig:
    """Two iterations of SPIN on shards of two prompts, without warm-up, benchmark and baseline."""
    values: dict[str, Any] = {
        "iterations": 2,
        "model": ModelConfig("builtin:tiny"),
        "data": DataConfig("builtin:letters"),
        "generation": GenerationConfig(shard_size=2),
        "feedback": FeedbackConfig(),
        "objective": SpinObjective(),
        "benchmark": BenchmarkConfig(enabled=False),
    }
    return RunConfig(str(run_dir), **{**values, **changes})


def plan_of(config: RunConfig, rows: dict[str, int] = ROWS, **scheduled: RunConfig) -> list[Unit]:
    """The plan; `scheduled` has the configs of single iterations as ``i1=…``."""
    configs = [scheduled.get(f"i{index}", config) for index in range(config.iterations)]
    return plan_units(RunLayout(Path(config.run_dir)), config, configs, rows)


def names(units: list[Unit]) -> list[str]:
    return [unit.name for unit in units]


def test_the_quickstart_with_warm_up_and_baseline_makes_these_units_in_this_order(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        warmup=WarmupConfig(enabled=True),
        benchmark=BenchmarkConfig(),
        baseline=Baseline.sft,
        generation=GenerationConfig(shard_size=5),
    )
    assert names(plan_of(config)) == [
        "start/policy",
        "start/benchmark",
        "iterations/000/config",
        "iterations/000/samples/0",
        "iterations/000/pairs/0",
        "iterations/000/policy",
        "iterations/000/benchmark",
        "iterations/001/config",
        "iterations/001/samples/0",
        "iterations/001/pairs/0",
        "iterations/001/policy",
        "iterations/001/benchmark",
        "baseline/000/policy",
        "baseline/000/benchmark",
        "baseline/001/policy",
        "baseline/001/benchmark",
    ]
    sources = {unit.name: unit.sources for unit in plan_of(config)}
    assert sources["start/policy"] == ("model",)
    assert sources["iterations/000/policy"] == ("start/policy", "iterations/000/pairs/0")
    assert sources["iterations/001/samples/0"] == ("iterations/000/policy",)
    assert sources["iterations/001/benchmark"] == ("iterations/001/policy", "iterations/000/benchmark")
    assert sources["baseline/000/policy"] == ("start/policy",)
    assert sources["baseline/001/benchmark"] == ("baseline/001/policy", "baseline/000/benchmark")


def test_shards_divide_the_prompts_and_replayed_pairs_are_sources_of_the_same_shard(tmp_path: Path) -> None:
    plan = plan_of(config_of(tmp_path, replay=1))
    samples = [unit for unit in plan if unit.kind == "samples" and unit.stage.name == "iterations/000"]
    assert [unit.prompts for unit in samples] == [range(0, 2), range(2, 4), range(4, 5)]
    assert samples[1].path == tmp_path / "iterations/000/samples/shard-00001.parquet"
    last = next(unit for unit in plan if unit.name == "iterations/001/pairs/2")
    assert last.sources == ("iterations/001/samples/2", "iterations/000/pairs/2")
    assert last.path == tmp_path / "iterations/001/pairs/shard-00002.parquet"


def test_tspin_takes_the_samples_of_iteration_0_as_a_source_of_later_pairs(tmp_path: Path) -> None:
    plan = plan_of(config_of(tmp_path, objective=TspinObjective()))
    sources = {unit.name: unit.sources for unit in plan}
    assert sources["iterations/000/pairs/2"] == ("iterations/000/samples/2",)
    assert sources["iterations/001/pairs/2"] == ("iterations/001/samples/2", "iterations/000/samples/2")


def test_each_reward_source_scores_each_shard_between_its_samples_and_its_pairs(tmp_path: Path) -> None:
    plan = plan_of(config_of(tmp_path, feedback=TWO_SOURCES, replay=1), {"train": 3, "heldout": 2})
    first = [unit for unit in plan if unit.stage.name == "iterations/000"]
    assert names(first) == [
        "iterations/000/config",
        "iterations/000/samples/0",
        "iterations/000/samples/1",
        "iterations/000/rewards/exact_match/0",
        "iterations/000/rewards/exact_match/1",
        "iterations/000/rewards/judge/0",
        "iterations/000/rewards/judge/1",
        "iterations/000/pairs/0",
        "iterations/000/pairs/1",
        "iterations/000/policy",
    ]
    rewards = first[6]
    assert (rewards.kind, rewards.reward_source, rewards.shard, rewards.prompts) == ("rewards", "judge", 1, range(2, 3))
    assert rewards.path == tmp_path / "iterations/000/rewards/judge/shard-00001.parquet"
    assert rewards.sources == ("iterations/000/samples/1",)
    assert first[-1].sources == ("model", "iterations/000/pairs/0", "iterations/000/pairs/1")
    replaying = next(unit for unit in plan if unit.name == "iterations/001/pairs/1")
    assert replaying.sources == (
        "iterations/001/samples/1",
        "iterations/001/rewards/exact_match/1",
        "iterations/001/rewards/judge/1",
        "iterations/000/pairs/1",
    )


def test_pairs_are_made_again_when_samples_or_rewards_have_another_digest(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState(plan_of(config_of(tmp_path, feedback=TWO_SOURCES)), ledger)
    stage = RunLayout(tmp_path).iteration(0)
    samples, pairs = state.unit(stage, "samples"), state.unit(stage, "pairs")
    exact, judge = state.unit(stage, "rewards", 0), state.unit(stage, "rewards", 3)
    assert (exact.reward_source, judge.reward_source) == ("exact_match", "judge")
    state.record(samples, SamplesFacts("s"))
    assert digest_sources(state, exact) == "s"
    state.record(exact, RewardsFacts("e", "s", rows=2, mean=0.5))
    assert digest_sources(state, pairs) is None  # the rewards of one source are missing
    state.record(judge, RewardsFacts("j", "s", rows=2, mean=7.0))
    source = digest_sources(state, pairs)
    assert source == hashlib.sha256(b"s e j").hexdigest()
    pairs.path.parent.mkdir(parents=True)
    pairs.path.write_text("rows")
    state.record(pairs, PairsFacts(file_sha256(pairs.path), source))
    assert verify_unit(state, pairs) is None
    state.record(judge, RewardsFacts("k", "s", rows=2, mean=7.0))
    assert verify_unit(state, pairs) == "came from files that are no longer there"


def test_a_scheduled_sft_iteration_has_no_rows_and_is_not_replayed(tmp_path: Path) -> None:
    config = config_of(tmp_path, replay=2, iterations=3, generation=GenerationConfig(shard_size=5))
    plan = plan_of(config, i1=config_of(tmp_path, objective=SftObjective(), iterations=3))
    assert names([unit for unit in plan if unit.stage.name == "iterations/001"]) == [
        "iterations/001/config",
        "iterations/001/policy",
    ]
    last = next(unit for unit in plan if unit.name == "iterations/002/pairs/0")
    assert last.sources == ("iterations/002/samples/0", "iterations/000/pairs/0")


def test_labelled_data_alone_make_scored_sets_and_nothing_is_generated(tmp_path: Path) -> None:
    config = config_of(tmp_path, feedback=FeedbackConfig(rows=None, path="pairs.jsonl"), iterations=1)
    plan = plan_of(config, ROWS | {"labelled-pairs": 3})
    assert names(plan) == ["iterations/000/config", "iterations/000/pairs/labelled-pairs", "iterations/000/policy"]
    assert plan[1].path == tmp_path / "iterations/000/pairs/labelled-pairs.parquet"
    assert plan[2].sources == ("model", "iterations/000/pairs/labelled-pairs")


def test_without_benchmark_and_warm_up_the_start_has_no_unit(tmp_path: Path) -> None:
    assert {unit.kind for unit in plan_of(config_of(tmp_path))} == {"config", "samples", "pairs", "policy"}
    assert "start" not in {unit.stage.name for unit in plan_of(config_of(tmp_path))}


def test_before_the_data_are_prepared_each_iteration_has_one_shard(tmp_path: Path) -> None:
    samples = [unit for unit in plan_of(config_of(tmp_path), {}) if unit.kind == "samples"]
    assert names(samples) == ["iterations/000/samples/0", "iterations/001/samples/0"]


def test_lm_eval_is_done_again_when_other_tasks_are_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    first, second = (LmEvalConfig(tasks=[task]) for task in ("arc", "gsm8k"))
    ledger.append("start/lm_eval", sha256="s", settings=to_plain(first))
    for tasks, expected in ((first, True), (second, False)):
        config = config_of(tmp_path, benchmark=BenchmarkConfig(lm_eval=tasks))
        state = RunState(plan_of(config), ledger)
        assert state.done(state.unit(RunLayout(tmp_path).start, "lm_eval")) is expected


def test_todo_begins_with_the_first_unfinished_unit_and_skips_the_rows_of_a_promoted_policy(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState(plan_of(config_of(tmp_path, generation=GenerationConfig(shard_size=5))), ledger)
    ledger.append("iterations/000/policy", digest="d")
    assert names(state.todo()) == [
        "iterations/001/config",
        "iterations/001/samples/0",
        "iterations/001/pairs/0",
        "iterations/001/policy",
    ]
    ledger.append("iterations/001/config", keys={})
    ledger.append("iterations/001/samples/0", sha256="s")
    assert names(state.todo()) == ["iterations/001/pairs/0", "iterations/001/policy"]
    assert [stage.name for stage in state.stages("policy")] == ["iterations/000"]


def test_a_policy_is_used_later_once_the_next_iteration_has_begun(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState(plan_of(config_of(tmp_path, benchmark=BenchmarkConfig())), ledger)
    policy = state.unit(RunLayout(tmp_path).iteration(0), "policy")
    ledger.append("iterations/000/policy", digest="d")
    ledger.append("iterations/000/benchmark", sha256="s")  # its own benchmark is no later work
    assert not state.used_later(policy)
    ledger.append("iterations/001/config", keys={})
    assert state.used_later(policy)


def test_facts_are_read_with_the_keys_of_the_ledger_and_written_back_unchanged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState(plan_of(config_of(tmp_path)), ledger)
    stage = RunLayout(tmp_path).iteration(0)
    samples, pairs = state.unit(stage, "samples", 1), state.unit(stage, "pairs", 1)
    with pytest.raises(KeyError, match="samples/1 is not finished"):
        state.facts(samples, SamplesFacts)
    state.record(samples, SamplesFacts("s", rows=4, tokens=9, truncated=2, seconds=0.5))
    assert ledger.get("iterations/000/samples/1") == {
        "unit": "iterations/000/samples/1", "sha256": "s", "rows": 4, "tokens": 9, "cut": 2, "seconds": 0.5,
    }  # fmt: skip
    state.record(pairs, PairsFacts("p", "s", rows=3, dropped={"identical": 1}))
    assert state.facts(pairs, PairsFacts) == PairsFacts("p", "s", 3, 0.0, 0, {"identical": 1}, None)
    state.record_totals(stage, "samples", KindTotals(9, 1.5, background=True))
    assert (ledger.get("iterations/000/samples") or {})["beside"] is True
    assert state.totals(stage, "samples") == KindTotals(9, 1.5, True)
    assert state.seconds(stage, "samples") == 1.5
    assert state.seconds(stage, "pairs") is None
    state.record_states(stage, {3: SavedState("d", "s", 2)})
    assert RunState([], Ledger(ledger.path)).saved_states(stage) == {3: SavedState("d", "s", 2)}


def test_a_file_that_is_gone_altered_or_made_from_another_source_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState(plan_of(config_of(tmp_path)), ledger)
    stage = RunLayout(tmp_path).iteration(0)
    samples, pairs = state.unit(stage, "samples"), state.unit(stage, "pairs")
    pairs.path.parent.mkdir(parents=True)
    pairs.path.write_text("rows")
    state.record(samples, SamplesFacts("old"))
    state.record(pairs, PairsFacts(file_sha256(pairs.path), "old"))
    assert verify_unit(state, samples) == "is gone"
    assert verify_unit(state, pairs) is None
    state.record(samples, SamplesFacts("new"))
    assert verify_unit(state, pairs) == "came from files that are no longer there"
    pairs.path.write_text("other rows")
    assert verify_unit(state, pairs) == "was altered since it was finished"


def test_a_run_that_the_stop_rule_ended_early_is_complete_with_fewer_iterations(tmp_path: Path) -> None:
    layout, ledger = RunLayout(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    config = config_of(tmp_path, iterations=5, baseline=Baseline.sft)
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger.append("data", sha256={"train": "t"}, train=5, heldout=2)
    ledger.append("session", iterations=1, benchmark=False, baseline=False)
    ledger.append("iterations/000/policy", digest="d", opponent="m", steps=3, tokens=7, seconds=2.0)
    state = read_state(layout, ledger)
    assert prepared_rows(ledger) == {"train": 5, "heldout": 2}
    assert state.todo() == []
    assert [stage.label for stage in state.stages()] == ["iteration 0"]
    assert state.facts(state.unit(layout.iteration(0), "policy"), PolicyFacts) == PolicyFacts("d", "m", 3, 7, 2.0)


def test_an_iteration_that_has_begun_is_planned_with_its_own_config(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    layout.config.write_text(yaml.safe_dump(to_plain(config_of(tmp_path))))
    own = layout.iteration(0).config
    own.parent.mkdir(parents=True)
    own.write_text(yaml.safe_dump(to_plain(config_of(tmp_path, objective=SftObjective()))))
    state = read_state(layout, Ledger(layout.ledger))
    assert state.units(layout.iteration(0), "samples") == []
    assert len(state.units(layout.iteration(1), "samples")) == 1


@pytest.mark.parametrize(
    ("facts", "refused"), [({}, "0.1"), ({"version": "0.3.0"}, "0.3.0"), ({"version": "0.2.7"}, None)]
)
def test_a_run_of_another_version_is_refused(tmp_path: Path, facts: dict[str, str], refused: str | None) -> None:
    layout, ledger = RunLayout(tmp_path), Ledger(tmp_path / "ledger.jsonl")
    layout.config.write_text(yaml.safe_dump(to_plain(config_of(tmp_path))))
    ledger.append("run", keys={}, **facts)
    if refused is None:
        read_state(layout, ledger)
        return
    message = f"written by another version of spin ({refused}, this is 0.2.0)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_state(layout, ledger)


def test_two_hundred_iterations_of_64_shards_are_planned_in_seconds(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=200, replay=2, generation=GenerationConfig(shard_size=1))
    start = time.perf_counter()
    state = RunState(plan_of(config, {"train": 64, "heldout": 2}), Ledger(tmp_path / "ledger.jsonl"))
    assert len(state.todo()) == 200 * (2 * 64 + 2)
    assert not state.used_later(state.plan[-1])
    assert time.perf_counter() - start < 5  # it takes 0.3 s on one idle core


def test_iterations_take_the_next_prompts_and_begin_anew_after_the_last_one(tmp_path: Path) -> None:
    # Five prompts, three an iteration, shards of two.
    generation = GenerationConfig(shard_size=2, prompts_per_iteration=3)
    plan = plan_of(config_of(tmp_path, iterations=4, generation=generation))
    shards: dict[int, list[list[int]]] = {}
    for unit in plan:
        if unit.kind == "samples":
            shards.setdefault(unit.stage.index, []).append(list(unit.prompts))
    assert shards == {0: [[0, 1], [2]], 1: [[3, 4], [0]], 2: [[1, 2], [3]], 3: [[4], [0, 1]]}
    # The rows are made from the samples of the same shard.
    pairs = [unit for unit in plan if unit.kind == "pairs" and unit.stage.index == 1]
    assert [unit.sources for unit in pairs] == [("iterations/001/samples/0",), ("iterations/001/samples/1",)]
    assert [list(unit.prompts) for unit in pairs] == [[3, 4], [0]]


def test_more_prompts_than_there_are_take_each_prompt_once(tmp_path: Path) -> None:
    generation = GenerationConfig(shard_size=2, prompts_per_iteration=7)
    plan = plan_of(config_of(tmp_path, iterations=1, generation=generation))
    assert [list(unit.prompts) for unit in plan if unit.kind == "samples"] == [[0, 1], [2, 3], [4]]


def test_other_prompts_in_each_iteration_are_refused_with_replay_and_with_the_answers_of_iteration_0(
    tmp_path: Path,
) -> None:
    generation = GenerationConfig(prompts_per_iteration=3)
    with pytest.raises(ConfigError, match="prompts_per_iteration=3 with replay=1: iterations have other prompts"):
        config_of(tmp_path, generation=generation, replay=1)
    with pytest.raises(ConfigError, match="prompts_per_iteration=3 with objective=tspin, which needs the answers"):
        config_of(tmp_path, generation=generation, objective=TspinObjective())


def test_every_third_iteration_and_the_last_one_are_measured_against_the_one_measured_before(tmp_path: Path) -> None:
    config = config_of(tmp_path, iterations=7, benchmark=BenchmarkConfig(every=3), baseline=Baseline.sft)
    measured = {unit.name: unit.sources for unit in plan_of(config) if unit.kind == "benchmark"}
    assert measured == {
        "start/benchmark": ("model",),
        "iterations/002/benchmark": ("iterations/002/policy", "start/benchmark"),
        "iterations/005/benchmark": ("iterations/005/policy", "iterations/002/benchmark"),
        "iterations/006/benchmark": ("iterations/006/policy", "iterations/005/benchmark"),
        "baseline/002/benchmark": ("baseline/002/policy", "start/benchmark"),
        "baseline/005/benchmark": ("baseline/005/policy", "baseline/002/benchmark"),
        "baseline/006/benchmark": ("baseline/006/policy", "baseline/005/benchmark"),
    }


def test_a_reward_model_is_trained_from_the_start_policy_before_anything_is_measured(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, iterations=1, warmup=WarmupConfig(enabled=True), benchmark=BenchmarkConfig(), reward_model=RANKED
    )
    plan = plan_of(config, {"train": 2, "heldout": 2})
    assert names(plan)[:4] == [
        "start/policy",
        "reward_model/reward_model",
        "reward_model/evaluation",
        "start/benchmark",
    ]
    assert [unit.sources for unit in plan[1:3]] == [("start/policy",), ("reward_model/reward_model",)]
    assert [unit.path for unit in plan[1:3]] == [
        tmp_path / "reward_model" / "model",
        tmp_path / "reward_model" / "evaluation.json",
    ]
    assert plan[1].stage.label == "reward model"


def test_without_a_warm_up_the_reward_model_is_trained_from_the_given_model(tmp_path: Path) -> None:
    plan = plan_of(config_of(tmp_path, reward_model=RANKED))
    assert names(plan)[:2] == ["reward_model/reward_model", "reward_model/evaluation"]
    assert plan[0].sources == ("model",)


def test_rewards_of_a_trained_reward_model_are_made_again_when_it_is(tmp_path: Path) -> None:
    feedback = FeedbackConfig(rows="best_worst_pairs", rewards=["reward_model"])
    plan = plan_of(config_of(tmp_path, iterations=1, reward_model=RANKED, feedback=feedback), {"train": 2})
    [rewards] = [unit for unit in plan if unit.kind == "rewards"]
    assert rewards.sources == ("iterations/000/samples/0", "reward_model/reward_model")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    state = RunState(plan, ledger)
    ledger.append("iterations/000/samples/0", sha256="ab")
    assert digest_sources(state, rewards) is None
    ledger.append("reward_model/reward_model", digest="cd")
    assert digest_sources(state, rewards) == hashlib.sha256(b"ab cd").hexdigest()


def test_a_refreshed_reward_model_learns_from_the_judged_samples_up_to_its_iteration(tmp_path: Path) -> None:
    refreshed = RewardModelConfig(refresh=Refresh.every, refresh_by="exact_match")
    feedback = FeedbackConfig(rows="soft_pairs", rewards=["reward_model", {"name": "exact_match", "weight": 0}])
    config = config_of(tmp_path, feedback=feedback, reward_model=refreshed)
    units = plan_of(config, {"train": 2, "heldout": 2})
    iteration = [
        "config", "samples/0", "rewards/exact_match/0", "RM rankings", "RM rankings-heldout", "RM reward_model",
        "RM evaluation", "rewards/reward_model/0", "pairs/0", "policy",
    ]  # fmt: skip
    expected = []
    for index in (0, 1):
        for name in iteration:
            folder = f"iterations/{index:03d}/"
            if name.startswith("RM "):
                folder = f"reward_model/{index:03d}/"
            expected.append(folder + name.removeprefix("RM "))
    assert names(units) == expected
    sources = {unit.name: unit.sources for unit in units}
    assert sources["reward_model/001/rankings"] == ("iterations/001/rewards/exact_match/0",)
    rankings = ("reward_model/000/rankings", "reward_model/001/rankings")
    assert sources["reward_model/001/reward_model"] == ("model", *rankings)
    assert sources["iterations/001/rewards/reward_model/0"][1] == "reward_model/001/reward_model"
    assert "reward_model/001/rankings-heldout" in sources["reward_model/001/evaluation"]
    stage = units[5].stage
    assert (stage.label, stage.index, stage.is_reward_model) == ("reward model 0", 0, True)
    assert units[5].path == tmp_path / "reward_model" / "000" / "model"


def test_a_judge_may_rank_the_samples_and_label_no_pair(tmp_path: Path) -> None:
    refreshed = RewardModelConfig(refresh=Refresh.every)
    feedback = FeedbackConfig(rows="soft_pairs", rewards=["reward_model"])
    units = plan_of(config_of(tmp_path, feedback=feedback, reward_model=refreshed), {"train": 2, "heldout": 2})
    sources = {unit.name: unit.sources for unit in units}
    assert sources["reward_model/000/rankings"] == ("iterations/000/judgements/0",)
    assert "iterations/000/judgements/0" not in sources["iterations/000/pairs/0"]
