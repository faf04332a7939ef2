"""A judge at an endpoint: many questions at a time, none paid twice, within a budget."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from spin.config.judge import JudgeConfig
from spin.errors import ConfigError, TrainingError
from spin.feedback.endpoint import Endpoint, NoReply, Secret
from spin.feedback.judge_labels import LabelProbabilities, restrict_to_labels
from spin.feedback.judge_template import JudgeTemplate, Question
from spin.feedback.reply_file import EndpointReply, ReplyFile
from spin.wording import count_of


class EndpointJudge:
    """Ask an endpoint for the probabilities of the labels."""

    def __init__(self, settings: JudgeConfig, key: Secret, replies: ReplyFile, max_failures: float) -> None:
        """Make a judge.

        Args:
            settings: The endpoint, its labels and limits.
            key: Of the endpoint.
            replies: The replies of the run so far; new ones are added.
            max_failures: Share of questions without a reply above which `ask` gives up.
        """
        self._settings = settings
        self._endpoint = Endpoint(settings, key)
        self._replies = replies
        self._max_failures = max_failures
        self._asked: list[EndpointReply] = []
        """The paid replies since the last call of `take_usage`."""
        self._cached = 0

    def ask(self, questions: Sequence[Question]) -> list[LabelProbabilities]:
        """Return the judge's probabilities of the labels for each question.

        Raises:
            TrainingError: The budget is reached, too many questions have no reply, or the endpoint
                refuses the requests.
        """
        keys = [self._make_key(question) for question in questions]
        # The same question is asked once.
        missing: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if self._replies.get(key) is None:
                missing.setdefault(key, question)
        self._cached += len(questions) - len(missing)
        self._ask_missing(missing, len(questions))
        return [read_reply(self._replies.get(key), self._settings.reply_labels) for key in keys]

    def take_usage(self) -> dict[str, float]:
        """Return requests, tokens and price since the last call."""
        asked, self._asked = self._asked, []
        cached, self._cached = self._cached, 0
        prompt_tokens = sum(reply.prompt_tokens for reply in asked)
        completion_tokens = sum(reply.completion_tokens for reply in asked)
        question_price, reply_price = self._settings.price
        return {
            "requests": len(asked),
            "cached": cached,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "price": (question_price * prompt_tokens + reply_price * completion_tokens) / 1e6,
        }

    def _ask_missing(self, missing: dict[str, Question], total: int) -> None:
        """Ask the questions whose reply is not known, a few at a time."""
        budget = self._settings.max_requests
        allowed = len(missing)
        if budget is not None:
            # A rationale is a request of its own.
            requests_each = 1 + bool(self._settings.rationale_tokens)
            allowed = max(0, budget - len(self._replies)) // requests_each
        tasks = list(missing.items())[:allowed]
        problems: list[str] = []
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            calls = [threads.submit(self._ask_one, key, question) for key, question in tasks]
            try:
                for call in calls:
                    problem = call.result()
                    if problem is not None:
                        problems.append(problem)
                    # More failures than this fail more comparisons than the run accepts.
                    if len(problems) > self._max_failures * total:
                        raise TrainingError(
                            f"judge.model={self._settings.model} gave no reply to {len(problems)} of {total} "
                            f"questions (the last: {problems[-1]}); the replies so far are kept: "
                            "the same spin run command goes on with the others"
                        )
            finally:
                # After an error, what was not sent is not paid.
                threads.shutdown(wait=True, cancel_futures=True)
        if allowed < len(missing):
            raise TrainingError(
                f"judge.max_requests={budget} is reached and {count_of(len(missing) - allowed, 'question')} left; "
                "all replies are kept: raise it to go on"
            )

    def _ask_one(self, key: str, question: Question) -> str | None:
        """Ask one question and keep the reply; returns why there is none."""
        rationale = ""
        try:
            if self._settings.rationale_tokens:
                rationale = self._find_rationale(question)
            reply = self._endpoint.ask(question, rationale)
        except NoReply as error:
            return str(error)
        except ConfigError as error:
            # At launch it was the user's input; now it is the endpoint that has changed.
            raise TrainingError(str(error)) from error
        self._replies.add(key, reply)
        self._asked.append(reply)
        return None

    def _find_rationale(self, question: Question) -> str:
        """Return the rationale of a question, which is asked for if it is not known."""
        key = self._make_key(question, "rationale")
        known = self._replies.get(key)
        if known is None:
            known = self._endpoint.write_rationale(question)
            self._replies.add(key, known)
            self._asked.append(known)
        return known.text

    def _make_key(self, question: Question, kind: str = "label") -> str:
        """Return the digest of all that a reply depends on.

        Args:
            question: The question.
            kind: ``label`` or ``rationale``.
        """
        settings = self._settings
        asked = (settings.model, settings.name, settings.reply_labels, settings.prefill, settings.rationale_tokens)
        parts = (kind, *asked, question.text, question.ending)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_reply(reply: EndpointReply | None, labels: Sequence[str]) -> LabelProbabilities:
    """Return the probabilities of the labels; NaN without a reply."""
    if reply is None:
        return LabelProbabilities([math.nan] * len(labels), 0.0, "no_reply")
    logps = {number: reply.label_logps.get(label, -math.inf) for number, label in enumerate(labels)}
    return restrict_to_labels(logps, [[number] for number in range(len(labels))])


def try_endpoint(settings: JudgeConfig, key: Secret, template: JudgeTemplate) -> None:
    """Ask one question before the run begins, which is paid.

    Raises:
        ConfigError: The endpoint cannot be reached, refuses the request, or gives no label.
    """
    question = template.ask("What is 2 + 2?", ["4", "5"][: template.num_answers])
    try:
        reply = Endpoint(settings, key).ask(question)
    except NoReply as error:
        raise ConfigError(
            f"judge.model={settings.model} gives no reply ({error}, after {settings.retries + 1} attempts of up to "
            f"{settings.timeout:g} s); check the URL and that the endpoint is up"
        ) from None
    if not reply.label_logps:
        raise ConfigError(
            f"judge.model={settings.model}: none of the likely next tokens is one of "
            f"{', '.join(settings.reply_labels)}; change judge.template, its ending or judge.prefill"
        )
