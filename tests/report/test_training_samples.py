"""Samples that were trained on, as the report shows them."""

from pathlib import Path

import pytest

from spin.data.judge_records import JudgedScore, Judgement
from spin.data.parquet import write_rows
from spin.data.records import Prompt, Sample, Score
from spin.report.training_samples import MAX_PROMPTS, choose_evenly, list_training_samples
from spin.run_dir.facts import JudgementsFacts, RewardsFacts, SamplesFacts
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import RunState
from spin.run_dir.store import RunStore
from spin.run_dir.unit import Unit

NAN = float("nan")


def make_state(root: Path) -> tuple[RunLayout, RunState]:
    """Write two samples to each of prompts 4 and 2, and the rewards of a verifier."""
    layout = RunLayout(root)
    stage = layout.iteration(0)
    samples = Unit("iterations/000/samples/0", stage, "samples", shard=0)
    rewards = Unit("iterations/000/rewards/verifier/0", stage, "rewards", shard=0, reward_source="verifier")
    judgements = Unit("iterations/000/judgements/0", stage, "judgements", shard=0)
    state = RunState([samples, rewards, judgements], Ledger(layout.ledger))

    prompts = [Prompt(index, [1], [2], "stop", f"prompt {index}", f"truth {index}", None) for index in range(6)]
    write_rows(layout.prompts("train"), Prompt, prompts)
    rows = []
    for prompt_id in (4, 2):
        for index in range(2):
            rows.append(Sample(prompt_id, index, [5], "stop", -1.0, f"answer {prompt_id}.{index}"))
    state.record(samples, SamplesFacts(write_rows(samples.path, Sample, rows)))
    scores = [Score(4, 0, 1.0), Score(4, 1, 0.0), Score(4, -1, 1.0), Score(2, 0, 0.5), Score(2, 1, 0.25)]
    state.record(rewards, RewardsFacts(write_rows(rewards.path, Score, scores)))
    return layout, state


def test_samples_have_their_prompt_ground_truth_and_rewards(tmp_path: Path) -> None:
    layout, state = make_state(tmp_path)
    found = list_training_samples(RunStore(tmp_path), layout, state, state.stages())
    # In the order of the training set.
    [two, four] = found["iteration 0"]
    assert (two.prompt_id, two.text, four.prompt_id) == (2, "prompt 2", 4)
    assert [(answer.label, answer.text) for answer in four.answers] == [
        ("ground truth", "truth 4"),
        ("sample 0", "answer 4.0"),
        ("sample 1", "answer 4.1"),
    ]
    assert [answer.figures for answer in four.answers] == [{"verifier": 1.0}, {"verifier": 1.0}, {"verifier": 0.0}]
    assert [answer.figures for answer in two.answers] == [{}, {"verifier": 0.5}, {"verifier": 0.25}]


def test_a_judge_gives_its_score_or_the_mean_probability_of_being_better(tmp_path: Path) -> None:
    layout, state = make_state(tmp_path)
    unit = state.unit(layout.iteration(0), "judgements")
    rows = [
        Judgement(4, 0, 1, 0.9, 0.1, 0.9, 1.0, 1.0, None),
        Judgement(4, -1, 0, 0.6, 0.4, 0.6, 1.0, 1.0, None),
        Judgement(4, -1, 1, NAN, NAN, NAN, 0.0, 0.0, "mass"),
    ]
    state.record(unit, JudgementsFacts(write_rows(unit.path, Judgement, rows)))
    four = list_training_samples(RunStore(tmp_path), layout, state, state.stages())["iteration 0"][1]
    # Sample 0: (0.9 + (1 - 0.6)) / 2.
    assert [answer.figures["judge"] for answer in four.answers] == pytest.approx([0.6, 0.65, 0.1])

    scores = [JudgedScore(4, 0, 0.5, 0.5, 0.5, 1.0, 1.0, None)]
    state.record(unit, JudgementsFacts(write_rows(unit.path, JudgedScore, scores)))
    four = list_training_samples(RunStore(tmp_path), layout, state, state.stages())["iteration 0"][1]
    assert [answer.figures.get("judge") for answer in four.answers] == [None, 0.5, None]


def test_files_that_were_altered_are_left_out(tmp_path: Path) -> None:
    layout, state = make_state(tmp_path)
    stage = layout.iteration(0)
    state.unit(stage, "rewards").path.write_bytes(b"x")
    found = list_training_samples(RunStore(tmp_path), layout, state, state.stages())
    assert found["iteration 0"][0].answers[1].figures == {}
    stage.samples(0).write_bytes(b"x")
    assert list_training_samples(RunStore(tmp_path), layout, state, state.stages()) == {}


def test_only_the_first_prompts_are_shown(tmp_path: Path) -> None:
    layout, state = make_state(tmp_path)
    unit = state.unit(layout.iteration(0), "samples")
    rows = [Sample(index, 0, [5], "stop", -1.0, "a") for index in range(MAX_PROMPTS + 1)]
    state.record(unit, SamplesFacts(write_rows(unit.path, Sample, rows)))
    write_rows(
        layout.prompts("train"), Prompt, [Prompt(index, [1], [2], "stop", "p", "t", None) for index in range(20)]
    )
    found = list_training_samples(RunStore(tmp_path), layout, state, state.stages())
    assert [prompt.prompt_id for prompt in found["iteration 0"]] == list(range(MAX_PROMPTS))


def test_the_first_and_the_last_are_among_the_chosen() -> None:
    assert choose_evenly(range(3), 6) == [0, 1, 2]
    assert choose_evenly(range(11), 3) == [0, 5, 10]
    assert choose_evenly(range(200), 6) == [0, 40, 80, 119, 159, 199]
