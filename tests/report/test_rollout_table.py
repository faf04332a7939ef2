"""The table of policy gradients and the lines of status, for few and for many iterations."""

import math
from dataclasses import asdict
from pathlib import Path

from spin.report.rollout_table import format_figure, make_rollout_table, pick_lines
from spin.report.run_report import Curve, Span
from spin.report.status import join_labels, join_latest
from spin.report.timeline import list_rows
from spin.report.training_curves import join_curves
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.reward_statistics import RewardStatistics
from spin.run_dir.rollout_statistics import RolloutStatistics
from spin.run_dir.run_state import RunState
from tests.run_dir.test_plan import config_of, plan_of


def test_of_many_iterations_lines_in_equal_distances_are_shown_with_the_first_and_the_last() -> None:
    rows = [[str(index)] for index in range(200)]
    shown = [int(row[0]) for row in pick_lines(rows)]
    assert len(shown) == 40
    assert shown[:3] == [0, 5, 10]
    assert shown[-1] == 199
    assert pick_lines(rows[:40]) == rows[:40]
    # Iterations after a benchmark are shown too.
    shown = [int(row[0]) for row in pick_lines(rows, [20, 101])]
    assert len(shown) == 41
    assert {20, 101} <= set(shown)
    assert len(pick_lines(rows, range(200))) == 40


def test_the_reward_stands_beside_the_exact_match_of_the_opponent_and_its_divergence(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    ledger = Ledger(layout.ledger)
    state = RunState(plan_of(config_of(tmp_path), {"train": 2, "heldout": 2}), ledger)
    for index in (0, 1):
        # Two prompts with the rewards 0 and 1; two answers of three tokens, KL index / 2.
        rewards = asdict(RewardStatistics(2, 1.0, 1.0, 0, 0))
        rollouts = asdict(RolloutStatistics(2, 6, 1, -3.0, 2, float(index)))
        ledger.append(f"iterations/00{index}/pairs/0", sha256="p", rewards=rewards, rollouts=rollouts)
    measured = {"start": {"exact_match_sampled": 0.25}, "iterations/001": {"exact_match_sampled": 0.75}}
    stages = [layout.start, layout.iteration(0), layout.iteration(1)]
    table = make_rollout_table(layout, state, stages, measured)
    assert table is not None
    assert table.columns == ["iteration", "reward", "truths", "EM T", "KL", "entropy", "tokens", "truncated"]
    # The policy of iteration 0, which is the opponent of iteration 1, was not measured.
    assert table.rows == [
        ["iteration 0", "0.500±0.980", "-", "0.250", "0.000", "0.500", "3.0", "50.0%"],
        ["iteration 1", "0.500±0.980", "-", "-", "0.500", "0.500", "3.0", "50.0%"],
    ]


def test_a_figure_that_an_iteration_lacks_is_a_dash() -> None:
    assert (format_figure(None, "{:.3f}"), format_figure(0.1234, "{:.1%}")) == ("-", "12.3%")


def test_labels_with_numbers_that_follow_each_other_are_one_stretch() -> None:
    assert join_labels(["start", "iteration 0", "iteration 1", "iteration 2"]) == "start, iteration 0 to 2"
    assert join_labels(["start", "iteration 0", "iteration 2", "baseline 0"]) == (
        "start, iteration 0, iteration 2, baseline 0"
    )
    labels = ["start", "reward model", "reward model 0", "reward model 1", "iteration 0"]
    assert join_labels(labels) == "start, reward model, reward model 0 to 1, iteration 0"
    assert join_labels([]) == ""


def test_of_many_texts_the_last_five_are_shown() -> None:
    texts = [f"iteration {index} reward" for index in range(7)]
    assert join_latest(texts[:5]) == "; ".join(texts[:5])
    assert join_latest(texts) == "(2 earlier ones are in spin report) " + "; ".join(texts[2:])


def test_the_curves_of_many_iterations_are_joined_and_a_missing_key_leaves_a_gap() -> None:
    few = [Curve([1, 2], {"loss": [0.5, 0.4]})]
    assert join_curves(few) is few
    many = [Curve([index], {"loss": [float(index)]}) for index in range(29)] + [Curve([29, 30], {"kl": [1.0, 2.0]})]
    [joined] = join_curves(many)
    assert joined.steps == list(range(31))
    assert joined.values["loss"][28] == 28.0
    assert all(math.isnan(value) for value in joined.values["loss"][29:])
    assert joined.values["kl"][29:] == [1.0, 2.0]


def test_the_time_line_of_many_policies_has_a_row_for_each_kind_of_work() -> None:
    def make_spans(policies: int) -> list[Span]:
        spans = []
        for index in range(policies):
            for kind in ("train", "generate"):
                spans.append(Span(f"iteration {index}", kind, float(index), index + 0.5, True))
        return spans

    assert list_rows(make_spans(3)) == ["iteration 0", "iteration 1", "iteration 2"]
    assert list_rows(make_spans(31)) == ["generate", "train"]
