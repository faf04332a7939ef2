"""Config group `judge`, the language model that compares answers, and `feedback.judged`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from spin.config.ranges import bounded, check_ranges
from spin.errors import require

OPPONENT = "opponent"
"""Value of `judge.model` with which the opponent judges its own answers."""


class Contestants(Enum):
    """The answers that are compared with each other."""

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
    """How the judgements of a prompt become pairs (`feedback.rows=judged_pairs`)."""

    contestants: Contestants = Contestants.samples
    """Answers that are compared: samples or truth_and_samples."""
    pairs: JudgedPairChoice = JudgedPairChoice.best_worst
    """Pairs to train on: all, truth, best_worst or best_rest."""
    on_tie: OnTie = OnTie.drop
    """What becomes of a tie: drop, half or keep."""
    tie_band: float = bounded(0.05, at_least=0, below=0.5)
    """A preference closer to ½ than this is a tie; 0 to below 0.5."""
    on_failure: OnFailure = OnFailure.drop
    """What becomes of a failed comparison: drop, half or abort."""
    min_mass: float = bounded(0.5, at_least=0, at_most=1)
    """Least probability of all labels together; a reply with less is a failure. 0 to 1."""
    max_failures: float = bounded(0.2, at_least=0, at_most=1)
    """Share of failed comparisons of a shard above which the run stops, 0 to 1."""

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

    model: str | None = None
    """A local folder, a Hub id, or ``opponent`` (the policy that wrote the answers); null: none."""
    chat_template: str = "auto"
    """Chat template of the judge, as `model.chat_template`."""
    template: str = "pairwise"
    """Question to the judge: ``pairwise``, or a .jinja file with the blocks question and ending."""
    labels: list[str] = field(default_factory=lambda: ["1", "2"])
    """What the judge replies if the first or the second answer is better; one token each."""
    both_orders: bool = True
    """Ask with each answer in the first place; false asks once, so that the judge's preference for
    a place goes into the training data."""
    max_answer_chars: int = bounded(8000, at_least=16, at_most=10_000_000)
    """Longest question or answer shown to the judge, in characters, at least 16; longer ones are
    cut with a visible mark."""
    max_prompt_tokens: int = bounded(2048, at_least=16, at_most=10_000_000)
    """Longest rendered question in tokens of the judge, at least 16; a longer one is a failure."""
    replicas: int = bounded(1, at_least=1, at_most=1024)
    """Engines of the judge, at least 1; unused if the opponent judges."""

    @property
    def is_own_model(self) -> bool:
        """Return whether the judge is a model on engines of its own."""
        return self.model is not None and self.model != OPPONENT

    def __post_init__(self) -> None:
        check_ranges(self, "judge.")
        require(
            len(self.labels) == 2 and self.labels[0] != self.labels[1],
            f"judge.labels={self.labels}: expected two different labels, such as [1, 2]",
        )
        for label in self.labels:
            require(bool(label) and label == label.strip(), f"judge.labels: {label!r}: expected no blanks around it")
