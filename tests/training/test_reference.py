"""Scoring rows under the reference, with a tiny real model."""

import gc
import math
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import KtoObjective, SpinObjective, TspinObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.run import RunConfig
from spin.config.training import Dtype, TrainingConfig
from spin.data.examples import to_example
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Pair, Prompt, Rating, Sample, Score
from spin.feedback.rows import RowsJob
from spin.models.loading import load_policy
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.run_dir.reward_statistics import RewardStatistics
from spin.training.job import TrainingJob
from spin.training.policy_scorer import PolicyScorer
from spin.training.reference import LabelledJob, allowed_engine_gap, score_labelled, score_rows
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.tiny import write_model

TRAINING = TrainingConfig(epochs=1, batch_size=4, max_length=16)


def make_config(objective: ObjectiveConfig, **groups: Any) -> RunConfig:
    model, data = ModelConfig("builtin:tiny"), DataConfig("builtin:letters")
    return RunConfig("run", model=model, data=data, objective=objective, **groups)


def test_a_checkpointed_model_is_gone_before_the_next_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write_model(tmp_path / "first", seed=0), write_model(tmp_path / "second", seed=1)
    training = replace(TRAINING, gradient_checkpointing=True)
    scorer = PolicyScorer(Dtype.float32)
    groups = [Group([5, 6], [[7, 8]])]
    scorer.score(first, groups, training)
    held = weakref.ref(scorer.model.get_decoder().layers[0])
    gone = []

    def load_and_look(*arguments: Any) -> Any:
        gone.append(held() is None)
        return load_policy(*arguments)

    monkeypatch.setattr("spin.training.policy_scorer.load_policy", load_and_look)
    # Without the help of the search for circles, which may come much later.
    gc.disable()
    try:
        scorer.score(second, groups, training)
    finally:
        gc.enable()
    assert gone == [True]


@pytest.mark.parametrize("has_base", [True, False])
def test_pairs_are_scored_under_the_base_too_if_the_reference_is_a_mixture(tmp_path: Path, has_base: bool) -> None:
    opponent, base = write_model(tmp_path / "opponent", seed=0), write_model(tmp_path / "base", seed=1)
    config = make_config(SpinObjective())
    write_rows(tmp_path / "pairs.parquet", Pair, [Pair(0, 0, "labelled", None, [5, 6], [7, 8], [9], *[math.nan] * 3)])
    out = tmp_path / "scored.parquet"
    mixed_base = base if has_base else None
    scorer = PolicyScorer(Dtype.float32)
    score_labelled(scorer, LabelledJob(config, opponent, Pair, str(tmp_path / "pairs.parquet"), str(out), mixed_base))
    [row] = read_rows(out, Pair)

    def logps(policy: Policy) -> list[float]:
        [scores] = scorer.score(policy, [Group([5, 6], [[7, 8], [9]])], config.training)
        return pytest.approx(scores, abs=1e-5)  # type: ignore[return-value]

    assert [row.reference_chosen_logp, row.reference_rejected_logp] == logps(opponent)
    if has_base:
        assert [row.base_chosen_logp, row.base_rejected_logp] == logps(base)
    else:
        assert math.isnan(row.base_chosen_logp)


def test_pairs_with_answers_of_the_start_policy_are_scored_and_trained_on(tmp_path: Path) -> None:
    opponent = write_model(tmp_path / "opponent", seed=0)
    config = make_config(TspinObjective(), generation=GenerationConfig(samples_per_prompt=1))
    trainer = Trainer(Dtype.float32)
    prompts, samples, start = (str(tmp_path / f"{name}.parquet") for name in ("prompts", "samples", "start"))

    # Two prompts, each with the engine's log-probability of its sample.
    ids = [[5, 6], [5, 9]]
    answers = [[20, 21], [22]]
    logps = trainer.score(opponent, [Group(*row) for row in zip(ids, [[a] for a in answers], strict=True)], TRAINING)
    write_rows(Path(prompts), Prompt, [Prompt(i, ids[i], [30 + i, 31], "stop", "", "", None) for i in range(2)])
    write_rows(Path(samples), Sample, [Sample(i, 0, answers[i], "stop", logps[i][0], f"{i}") for i in range(2)])
    write_rows(Path(start), Sample, [Sample(i, 0, [40 + i], "stop", -1.0, "") for i in range(2)])

    # Iteration 1: score the pairs with the start policy's answers, and take a step on them.
    out = tmp_path / "pairs.parquet"
    score_rows(trainer, RowsJob(config, 1, opponent, opponent, prompts, samples, [], [], str(out), start_samples=start))
    rows = read_rows(out, Pair)
    assert [row.start_ids for row in rows] == [[40], [41]]
    [first, second] = trainer.score(opponent, [Group(ids[0], [[40]]), Group(ids[1], [[41]])], TRAINING)
    assert [row.reference_start_logp for row in rows] == pytest.approx([first[0], second[0]], abs=1e-5)
    job = TrainingJob(opponent, opponent, config.objective, TRAINING, seed=0, iteration=1)
    [step] = trainer.train(job, RowStream.whole([to_example(row) for row in rows]))

    # Before the step: the mean over both rows of ℓ(chosen − rejected) + 0.1 · ℓ(rejected − start).
    expected = 0.0
    for row in rows:
        assert row.reference_start_logp < 0
        expected += math.log1p(math.exp(row.reference_rejected_logp - row.reference_chosen_logp)) / 2
        expected += 0.1 * math.log1p(math.exp(row.reference_start_logp - row.reference_rejected_logp)) / 2
    assert step["loss"] == pytest.approx(expected, rel=1e-3)
    assert step["tokens/difference"] == pytest.approx(((2 - 2) + (2 - 1)) / 2)


def test_ratings_of_samples_are_scored_and_compared_with_the_engine(tmp_path: Path) -> None:
    opponent, base = write_model(tmp_path / "opponent", seed=0), write_model(tmp_path / "base", seed=1)
    feedback = FeedbackConfig(rows="ratings", rewards=["exact_match"])
    config = make_config(KtoObjective(), feedback=feedback)
    scorer = PolicyScorer(Dtype.float32)
    [[right, wrong]] = scorer.score(opponent, [Group([5, 6], [[7, 8], [9]])], config.training)
    [[base_right, base_wrong]] = scorer.score(base, [Group([5, 6], [[7, 8], [9]])], config.training)

    def make_job(reference: Policy, wrong_logp: float) -> RowsJob:
        prompts, samples, rewards, out = (str(tmp_path / name) for name in ("prompts", "samples", "rewards", "out"))
        write_rows(Path(prompts), Prompt, [Prompt(0, [5, 6], [7], "stop", "q", "a", "a")])
        rows = [Sample(0, 0, [7, 8], "stop", right, "a"), Sample(0, 1, [9], "stop", wrong_logp, "b")]
        write_rows(Path(samples), Sample, rows)
        write_rows(Path(rewards), Score, [Score(0, 0, 1.0), Score(0, 1, 0.0)])
        return RowsJob(config, 2, opponent, reference, prompts, samples, [rewards], [], out)

    facts = score_rows(scorer, make_job(opponent, wrong))
    ratings = read_rows(Path(facts["out"]), Rating)
    assert [(rating.desirable, rating.iteration) for rating in ratings] == [(True, 2), (False, 2)]
    assert [rating.reference_logp for rating in ratings] == pytest.approx([right, wrong], abs=1e-5)
    assert facts["rewards"] == asdict(RewardStatistics(1, 0.5, 0.25, all_right=0, all_wrong=0))
    # Another reference is not compared with the engine, which held the opponent.
    facts = score_rows(scorer, make_job(base, wrong + 1))
    logps = [rating.reference_logp for rating in read_rows(Path(facts["out"]), Rating)]
    assert logps == pytest.approx([base_right, base_wrong], abs=1e-5)
    assert facts["engine_gap"] is None
    with pytest.raises(RuntimeError, match=r"engine and trainer differ by 0\.333 nats a token"):
        score_rows(scorer, make_job(opponent, wrong + 1))


def test_float32_on_a_gpu_may_differ_by_what_tf32_costs_and_bfloat16_by_more() -> None:
    assert allowed_engine_gap(Dtype.float32, uses_gpu=False) == 1e-3
    assert allowed_engine_gap(Dtype.float32, uses_gpu=True) == 1e-2
    assert allowed_engine_gap(Dtype.bfloat16, uses_gpu=True) == 5e-2
