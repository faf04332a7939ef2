"""Turn a judge's next-token log-probabilities into probabilities of its labels.

log P(token) ──► log P(label), summed over the tokens that read as the label
             ──► probabilities among the labels, and their mass before that
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin.errors import ConfigError

MAX_TOKEN_IDS = 128
"""Most token ids whose log-probabilities vLLM returns for one request."""


@dataclass(frozen=True)
class LabelProbabilities:
    """What a judge's answer to one question says of each label."""

    probabilities: list[float]
    """P(label | one of the labels comes next), in the order of the labels; they sum to 1. NaN if
    the judge gives no label any probability."""
    mass: float
    """Probability that one of the labels comes next."""
    failure: str | None = None
    """Why the question has no reply; None if it has one."""

    def expectation(self, scale: Sequence[float]) -> float:
        """Return Σ_ℓ ℓ · P(ℓ), mapped from the ends of the scale to −1 and 1.

        The expected rating of arXiv 2309.00267, §2.2.2.

        Args:
            scale: The number that each label stands for.
        """
        mean = 0.0
        for value, probability in zip(scale, self.probabilities, strict=True):
            mean += value * probability
        middle = (min(scale) + max(scale)) / 2
        return (mean - middle) / (max(scale) - middle)


def find_label_ids(tokenizer: Any, labels: Sequence[str]) -> list[list[int]]:
    """Return for each label the ids of all tokens that read as the label, spaces aside.

    Args:
        tokenizer: The judge's tokenizer.
        labels: Different texts, such as ``["1", "2"]``.

    Raises:
        ConfigError: A label is no single token of the judge, or the labels have too many tokens.
    """
    # One decoded text for each id of the vocabulary; special tokens are never a label.
    special = set(tokenizer.all_special_ids)
    token_ids = [token_id for token_id in range(len(tokenizer)) if token_id not in special]
    texts = tokenizer.batch_decode([[token_id] for token_id in token_ids])
    ids_of: dict[str, list[int]] = {label: [] for label in labels}
    for token_id, text in zip(token_ids, texts, strict=True):
        if text.strip() in ids_of:
            ids_of[text.strip()].append(token_id)

    # P("1") would contain P("10") if "10" took two tokens.
    missing = [label for label, ids in ids_of.items() if not ids]
    if missing:
        raise ConfigError(
            f"judge: the judge's tokenizer has no single token for {', '.join(missing)}; "
            "expected labels of one token each, such as judge.labels=[1,2] and judge.scale=[1,9]"
        )
    total = sum(len(ids) for ids in ids_of.values())
    if total > MAX_TOKEN_IDS:
        raise ConfigError(
            f"the labels of the judge have {total} tokens, expected at most {MAX_TOKEN_IDS}; name fewer labels"
        )
    return [ids_of[label] for label in labels]


def restrict_to_labels(token_logps: Mapping[int, float], label_ids: Sequence[Sequence[int]]) -> LabelProbabilities:
    """Return the probabilities of the labels from those of the next token.

    Args:
        token_logps: log P(token), at temperature 1; a token that is missing has probability 0.
        label_ids: The token ids of each label, from `find_label_ids`.
    """
    weights = []
    for ids in label_ids:
        weights.append(sum(math.exp(token_logps.get(token_id, -math.inf)) for token_id in ids))
    mass = sum(weights)
    if mass == 0:
        return LabelProbabilities([math.nan] * len(weights), 0.0)
    return LabelProbabilities([weight / mass for weight in weights], mass)


def find_failure(replies: Sequence[LabelProbabilities], min_mass: float) -> str | None:
    """Return why the replies to a question in several forms cannot be used; None if they can.

    Args:
        replies: The replies.
        min_mass: A reply with less mass is a failure.
    """
    # The first reason that applies is the one that is counted.
    for reply in replies:
        if reply.failure is not None:
            return reply.failure
        if reply.mass < min_mass or math.isnan(reply.probabilities[0]):
            return "mass"
    return None
