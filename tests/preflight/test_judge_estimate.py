"""What a judge is still to be asked, on numbers small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spin.config.judge import Contestants, JudgeConfig, JudgedPairChoice, JudgedPairsConfig, JudgeMode
from spin.config.run import RunConfig
from spin.data.parquet import write_rows
from spin.data.records import Prompt
from spin.feedback.judge_template import JudgeTemplate
from spin.preflight.judge_estimate import count_questions, describe_judge_work
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.plan import plan_units
from spin.run_dir.run_state import RunState
from tests.feedback.samples import make_config


def make_judged(samples: int, judge: JudgeConfig, **judged: Any) -> RunConfig:
    config = make_config(samples, rows="judged_pairs", judged=JudgedPairsConfig(**judged))
    config.judge = judge
    config.iterations = 1
    return config


@pytest.mark.parametrize(
    ("judge", "judged", "expected"),
    [
        ({}, {}, 12),  # six pairs of four samples, in both orders
        ({"both_orders": False}, {}, 6),
        ({}, {"contestants": Contestants.truth_and_samples}, 20),
        ({}, {"contestants": Contestants.truth_and_samples, "pairs": JudgedPairChoice.truth}, 8),
        ({"mode": JudgeMode.scores}, {}, 8),
        ({"mode": JudgeMode.scores, "both_scales": False}, {"contestants": Contestants.truth_and_samples}, 5),
    ],
)
def test_questions_on_a_prompt(judge: dict[str, Any], judged: dict[str, Any], expected: int) -> None:
    assert count_questions(make_judged(4, JudgeConfig("opponent", **judge), **judged)) == expected


TEMPLATE = JudgeTemplate(
    "{% block question %}{{ prompt }}{{ answers[0] }}{{ answers[1] }}{% endblock %}{% block ending %}[{% endblock %}",
    ("1", "2"),
    100,
)


def describe(tmp_path: Path, judge: JudgeConfig, finished: bool = False) -> list[str]:
    """The line for ten prompts with two samples: 20 questions."""
    config = make_judged(2, judge)
    layout = RunLayout(tmp_path)
    # With two line ends and the ending, the question has 9 + 2 · 4 + 3 = 20 characters: 5 tokens.
    rows = [Prompt(index, [1], [2], "stop", "p" * 9, "four", None) for index in range(10)]
    write_rows(layout.prompts("train"), Prompt, rows)
    ledger = Ledger(layout.ledger)
    if finished:
        ledger.append("iterations/000/policy", digest="d", opponent="m", steps=1, tokens=1, seconds=1.0)
    state = RunState(plan_units(layout, config, [config], {"train": 10}), ledger)
    return describe_judge_work(state, [config], TEMPLATE, layout)


def test_questions_tokens_and_price_of_what_is_left(tmp_path: Path) -> None:
    [line] = describe(tmp_path, JudgeConfig("opponent"))
    assert "20 questions of about 5 tokens (4 characters each), 0.0001 M tokens" in line
    assert "price" not in line
    # 20 · (5 · 1000 + 2000) a million.
    [line] = describe(tmp_path, JudgeConfig("https://h/v1", name="a", price=[1000.0, 2000.0], max_requests=19))
    assert line.endswith(", price 0.14; judge.max_requests=19 stops the run before")


def test_nothing_is_said_when_no_question_is_left(tmp_path: Path) -> None:
    assert describe(tmp_path, JudgeConfig("opponent"), finished=True) == []
