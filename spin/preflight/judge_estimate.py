"""Estimate what a judge is still to be asked: questions, tokens, and the price of an endpoint."""

from __future__ import annotations

from collections.abc import Sequence

from spin.config.judge import Contestants, JudgedPairChoice, JudgeMode
from spin.config.run import RunConfig
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.feedback.judge_comparison import TRUTH, list_comparisons
from spin.feedback.judge_template import JudgeTemplate
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import RunState

CHARS_PER_TOKEN = 4
"""Characters of a token, a rule of thumb for English: the tokenizer of an endpoint is not known."""

SAMPLED_PROMPTS = 200
"""Prompts whose questions are measured."""


def count_questions(config: RunConfig) -> int:
    """Return the number of questions to the judge on one prompt of an iteration."""
    judged = config.feedback.judged
    answers = list(range(config.generation.samples_per_prompt))
    if judged.contestants is Contestants.truth_and_samples:
        answers = [TRUTH, *answers]
    if config.judge.mode is JudgeMode.scores:
        return len(answers) * (1 + config.judge.both_scales)
    pairs = list_comparisons(answers, judged.pairs is JudgedPairChoice.truth)
    return len(pairs) * (1 + config.judge.both_orders)


def describe_judge_work(
    state: RunState, iteration_configs: Sequence[RunConfig], template: JudgeTemplate, sets: RunLayout
) -> list[str]:
    """Return one line on the questions that are left, and none if no question is.

    Args:
        state: The plan of the run, and what is finished.
        iteration_configs: Config of each iteration.
        template: The question.
        sets: Where the prepared prompts are.
    """
    num_questions = 0
    for unit in state.todo():
        if unit.kind == "judgements":
            num_questions += len(unit.prompts) * count_questions(iteration_configs[unit.stage.index])
    if not num_questions:
        return []

    # Questions on the first prompts, with answers as long as their targets.
    prompts = read_rows(sets.prompts("train"), Prompt, 0, SAMPLED_PROMPTS)
    chars = 0
    for prompt in prompts:
        answers = [prompt.completion_text] * template.num_answers
        chars += len(template.ask(prompt.prompt_text, answers).with_ending)
    tokens_each = chars / len(prompts) / CHARS_PER_TOKEN
    text = (
        f"estimate, judge: {num_questions:,} questions of about {tokens_each:,.0f} tokens "
        f"({CHARS_PER_TOKEN} characters each), {num_questions * tokens_each / 1e6:,.3g} M tokens"
    )

    # A reply has one token. With a rationale, the question is sent twice, then with the rationale.
    settings = iteration_configs[0].judge
    question_price, reply_price = settings.price
    question_tokens, reply_tokens = tokens_each, 1
    if settings.rationale_tokens:
        question_tokens = 2 * tokens_each + settings.rationale_tokens
        reply_tokens += settings.rationale_tokens
    price = num_questions * (question_tokens * question_price + reply_tokens * reply_price) / 1e6
    if settings.is_endpoint and price:
        text += f", price {price:,.4g}"
    if settings.is_endpoint and settings.max_requests is not None and settings.max_requests < num_questions:
        text += f"; judge.max_requests={settings.max_requests} stops the run before"
    return [text]
