"""A judge that is a model on an engine of this run: from questions to label probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from spin.config.judge import JudgeConfig
from spin.data.bos_token import encode_plain
from spin.data.chat_renderer import Renderer
from spin.data.chat_templates import Unrenderable
from spin.feedback.judge_labels import LabelProbabilities, find_label_ids, restrict_to_labels
from spin.feedback.judge_template import Question
from spin.generation.requests import Answer, Request
from spin.models.policy import Policy


class NextTokenEngine(Protocol):
    """The part of `spin.generation.engine.Engine` that a judge needs."""

    def find_next_logps(
        self, policy: Policy, prompts: Sequence[list[int]], token_ids: Sequence[int]
    ) -> list[dict[int, float]]:
        """See Engine."""

    def generate(
        self,
        policy: Policy,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
    ) -> list[Answer]:
        """See Engine."""


class LocalJudge:
    """Ask a model for the probabilities of the labels."""

    def __init__(self, renderer: Renderer, settings: JudgeConfig) -> None:
        """Find the tokens of the labels.

        Args:
            renderer: Chat template and tokenizer of the judge.
            settings: Labels and lengths.

        Raises:
            ConfigError: A label is no single token of the judge.
        """
        self._renderer = renderer
        self._settings = settings
        self._label_ids = find_label_ids(renderer.tokenizer, settings.reply_labels)
        self._special_texts = list_special_texts(renderer.tokenizer)
        self._special_ids = set(renderer.tokenizer.all_special_ids)

    def ask(self, engine: NextTokenEngine, policy: Policy, questions: Sequence[Question]) -> list[LabelProbabilities]:
        """Return the judge's probabilities of the labels for each question.

        Args:
            engine: The engine of the judge.
            policy: The judge's weights.
            questions: What to ask. One that is too long for the judge has no reply.
        """
        # Questions that fit, with their position.
        rendered = [self.render(question) for question in questions]
        longest = self._settings.max_prompt_tokens
        fitting = [index for index, ids in enumerate(rendered) if len(ids) <= longest]
        prompts = [rendered[index] for index in fitting]
        if self._settings.rationale_tokens:
            prompts = self._add_rationales(engine, policy, [questions[index] for index in fitting])
        token_ids = [token_id for ids in self._label_ids for token_id in ids]
        logps = engine.find_next_logps(policy, prompts, token_ids)

        too_long = LabelProbabilities([math.nan] * len(self._label_ids), 0.0, "too_long")
        replies = [too_long] * len(questions)
        for index, token_logps in zip(fitting, logps, strict=True):
            replies[index] = restrict_to_labels(token_logps, self._label_ids)
        return replies

    def _add_rationales(
        self, engine: NextTokenEngine, policy: Policy, questions: Sequence[Question]
    ) -> list[list[int]]:
        """Let the judge write its rationales; returns the rendered questions up to their labels."""
        # Greedy, so that the same question always gets the same rationale.
        prompts = [self._render_question(question) for question in questions]
        requests = [Request(prompt, 0) for prompt in prompts]
        stop_ids = self._renderer.stop_ids
        rationales = engine.generate(policy, requests, self._settings.rationale_tokens, 0.0, 1.0, stop_ids)
        rendered = []
        for prompt, rationale, question in zip(prompts, rationales, questions, strict=True):
            # A special token would end the judge's turn.
            words = [token for token in rationale.token_ids if token not in self._special_ids]
            rendered.append([*prompt, *words, *encode_plain(self._renderer.tokenizer, question.ending)])
        return rendered

    def render(self, question: Question) -> list[int]:
        """Return the token ids of a question and of the beginning of its reply, without rationale.

        Raises:
            RuntimeError: The judge's chat template refuses the question.
        """
        prompt_ids = self._render_question(question)
        if not self._settings.prefill:
            return prompt_ids
        return [*prompt_ids, *encode_plain(self._renderer.tokenizer, question.ending)]

    def _render_question(self, question: Question) -> list[int]:
        """Return the token ids of a question up to the judge's turn."""
        # A special token's text in an answer would end the turn that the answer is shown in.
        text = question.text
        if not self._settings.prefill:
            text = question.with_ending
        for special in self._special_texts:
            text = text.replace(special, " ")
        try:
            return self._renderer.prompt_ids([{"role": "user", "content": text}])
        except Unrenderable as error:
            raise RuntimeError(f"the judge's chat template cannot show a question: {error}") from error


def list_special_texts(tokenizer: Any) -> list[str]:
    """Return the texts that a tokenizer reads as special tokens, the longest first."""
    texts = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            texts.add(token.content)
    return sorted(texts, key=lambda text: (-len(text), text))
