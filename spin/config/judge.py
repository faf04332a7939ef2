"""Config group `judge`, the language model that compares answers, and `feedback.judged`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from spin.config.ranges import bounded, check_ranges
from spin.errors import require

OPPONENT = "opponent"
"""Value of `judge.model` with which the opponent judges its own answers."""


LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that an endpoint without encryption may have."""


class JudgeMode(Enum):
    """What a judge is asked."""

    pairs = "pairs"
    """Which of two answers is better."""
    scores = "scores"
    """How good an answer is, on a scale of numbers."""


class Contestants(Enum):
    """The answers that are judged."""

    samples = "samples"
    """The samples of a prompt."""
    truth_and_samples = "truth_and_samples"
    """The ground truth and the samples."""


class JudgedPairChoice(Enum):
    """The pairs of answers that are trained on."""

    all = "all"
    """Every two answers."""
    truth = "truth"
    """The ground truth with each sample; only these are compared."""
    best_worst = "best_worst"
    """The answer with the highest mean preference against the one with the lowest."""
    best_rest = "best_rest"
    """The answer with the highest mean preference against each other one."""


class OnTie(Enum):
    """What becomes of a pair whose answers are about equally good."""

    drop = "drop"
    """It is left out and counted."""
    half = "half"
    """Its preference is set to ½."""
    keep = "keep"
    """It keeps its preference."""


class OnFailure(Enum):
    """What becomes of a comparison without a usable reply of the judge."""

    drop = "drop"
    """It is left out and counted."""
    half = "half"
    """Its preference is set to ½."""
    abort = "abort"
    """The run stops."""


@dataclass
class JudgedPairsConfig:
    """How the judgements of a prompt become rows.

    For `feedback.rows=judged_pairs`, `judged_ratings` and `judged_rollouts`."""

    contestants: Contestants = Contestants.samples
    """Answers that are judged: samples or truth_and_samples."""
    pairs: JudgedPairChoice = JudgedPairChoice.best_worst
    """Pairs to train on: all, truth, best_worst or best_rest."""
    on_tie: OnTie = OnTie.drop
    """What becomes of a tie: drop, half or keep."""
    tie_band: float = bounded(0.05, at_least=0, below=0.5)
    """A preference closer to ½ than this is a tie; 0 to below 0.5. With `judge.mode=scores`: two
    scores that are closer to each other than this."""
    on_failure: OnFailure = OnFailure.drop
    """What becomes of a failed comparison: drop, half or abort; ratings without a score are left
    out with drop and half; of rollouts, drop leaves out the prompt, half gives the mean reward."""
    min_mass: float = bounded(0.5, at_least=0, at_most=1)
    """Least probability of all labels together; a reply with less is a failure. 0 to 1."""
    max_failures: float = bounded(0.2, at_least=0, at_most=1)
    """Share of failed comparisons of a shard above which the run stops, 0 to 1."""
    min_score: float = bounded(0.0, at_least=-1, at_most=1)
    """Score above which an answer is desirable, for judged_ratings; −1 (worst) to 1 (best)."""

    def __post_init__(self) -> None:
        check_ranges(self, "feedback.judged.")
        require(
            self.pairs is not JudgedPairChoice.truth or self.contestants is Contestants.truth_and_samples,
            "feedback.judged.pairs=truth compares the ground truth, which is no contestant; "
            "set feedback.judged.contestants=truth_and_samples",
        )


@dataclass
class JudgeConfig:
    """The language model that judges answers."""

    # The judge.
    model: str | None = None
    """A local folder, a Hub id, ``opponent`` (the policy that wrote the answers), or the URL of an
    OpenAI-compatible endpoint, such as ``https://host/v1``; null: none."""
    chat_template: str = "auto"
    """Chat template of the judge, as `model.chat_template`."""
    # The question.
    mode: JudgeMode = JudgeMode.pairs
    """What the judge is asked: pairs (which of two answers is better) or scores."""
    template: str | None = None
    """Question to the judge: ``pairwise``, ``pairwise_rationale``, ``score``, or a .jinja file with
    the blocks question and ending; null: the one of the mode."""
    rationale_tokens: int = bounded(0, at_least=0, at_most=100_000)
    """Most tokens of a rationale, which the judge writes before its label; 0: none."""
    labels: list[str] = field(default_factory=lambda: ["1", "2"])
    """What the judge replies if the first or the second answer is better; one token each."""
    scale: list[int] = field(default_factory=lambda: [1, 9])
    """Lowest and highest number that the judge may reply with mode=scores; one token each."""
    both_scales: bool = True
    """With mode=scores, ask again with the lowest number as the best, so that a preference for high
    numbers cancels out."""
    both_orders: bool = True
    """Ask with each answer in the first place; false asks once, so that the judge's preference for
    a place goes into the training data."""
    prefill: bool = True
    """Begin the judge's reply with the ending of the template; false puts the ending at the end of
    the question, for endpoints that do not continue a begun reply."""
    max_answer_chars: int = bounded(8000, at_least=16, at_most=10_000_000)
    """Longest question or answer shown to the judge, in characters, at least 16; longer ones are
    cut with a visible mark."""
    max_prompt_tokens: int = bounded(2048, at_least=16, at_most=10_000_000)
    """Longest rendered question in tokens of the judge, at least 16; a longer one is a failure.
    Unused with an endpoint, which has a limit of its own."""
    replicas: int = bounded(1, at_least=1, at_most=1024)
    """Engines of the judge, at least 1; used only by a model with engines of its own."""
    # Endpoints.
    name: str | None = None
    """Name of the model at the endpoint."""
    api_key_env: str | None = None
    """Environment variable with the key of the endpoint; null sends none."""
    concurrency: int = bounded(8, at_least=1, at_most=1024)
    """Requests at the same time, at least 1."""
    retries: int = bounded(4, at_least=0, at_most=100)
    """Further attempts after a time-out, a lost connection, or status 429 or 5xx, at least 0."""
    timeout: float = bounded(60.0, above=0, at_most=86_400)
    """Seconds to wait for a reply, above 0."""
    max_requests: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Requests of the whole run after which it stops, at least 1; null: no limit."""
    price: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Price of a million tokens of questions, and of replies, for the report."""

    @property
    def reply_labels(self) -> list[str]:
        """The texts that the judge may reply."""
        if self.mode is JudgeMode.pairs:
            return self.labels
        return [str(number) for number in range(self.scale[0], self.scale[1] + 1)]

    @property
    def template_name(self) -> str:
        """The name of a shipped template, or the file of one."""
        if self.template is not None:
            return self.template
        if self.mode is JudgeMode.scores:
            return "score"
        if self.rationale_tokens:
            return "pairwise_rationale"
        return "pairwise"

    @property
    def max_length(self) -> int:
        """Longest text of a local judge in tokens: question, rationale and label."""
        return self.max_prompt_tokens + self.rationale_tokens + 1

    @property
    def is_own_model(self) -> bool:
        """Return whether the judge is a model on engines of its own."""
        return self.model is not None and self.model != OPPONENT and not self.is_endpoint

    @property
    def is_endpoint(self) -> bool:
        """Return whether the judge is an endpoint."""
        return self.model is not None and self.model.startswith(("http://", "https://"))

    def __post_init__(self) -> None:
        check_ranges(self, "judge.")
        require(
            len(self.labels) == 2 and self.labels[0] != self.labels[1],
            f"judge.labels={self.labels}: expected two different labels, such as [1, 2]",
        )
        for label in self.labels:
            require(bool(label) and label == label.strip(), f"judge.labels: {label!r}: expected no blanks around it")
        require(
            len(self.scale) == 2 and 0 <= self.scale[0] < self.scale[1] <= 100,
            f"judge.scale={self.scale}: expected the lowest and the highest of the numbers 0 to 100, such as [1, 9]",
        )
        require(
            self.prefill or not self.rationale_tokens or self.is_endpoint,
            f"judge.rationale_tokens={self.rationale_tokens} with judge.prefill=false: the ending must follow the "
            "rationale; set judge.prefill=true",
        )
        self._check_endpoint()

    def _check_endpoint(self) -> None:
        """Raise ConfigError when the settings of an endpoint do not fit together."""
        require(
            len(self.price) == 2 and all(0 <= price < math.inf for price in self.price),
            f"judge.price={self.price}: expected two numbers of at least 0, such as [0.5, 1.5]",
        )
        if not self.is_endpoint:
            require(self.name is None, f"judge.name={self.name} is for an endpoint; set judge.model to its URL")
            return
        assert self.model is not None
        require(self.name is not None, f"judge.model={self.model} is an endpoint; set judge.name to its model")
        url = urlsplit(self.model)
        # A key or a question must not cross a network unencrypted.
        require(
            url.scheme == "https" or url.hostname in LOOPBACK,
            f"judge.model={self.model}: expected https:// (http:// only for {LOOPBACK[0]})",
        )
        require(
            url.username is None and not url.query,
            "judge.model: expected a URL without user, password and query; name the variable of a key in "
            "judge.api_key_env",
        )
        key = "labels" if self.mode is JudgeMode.pairs else "scale"
        for label in self.reply_labels:
            require(
                len(label) == 1, f"judge.{key}: {label}: expected single characters with an endpoint, such as 1 to 9"
            )
