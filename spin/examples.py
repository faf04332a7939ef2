"""The rows of a training stage, their order, and the groups that a batch of them makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.packing import Group
from spin.records import Pair, Prompt, Rating


@dataclass(frozen=True)
class Half:
    """One completion: desirable (real, chosen) or not (generated, rejected)."""

    ids: list[int]
    desirable: bool
    reference_logp: float = math.nan


@dataclass(frozen=True)
class Example:
    """One row: a truth alone, a pair as (real, generated), or a rated completion alone."""

    name: str
    prompt_ids: list[int]
    halves: tuple[Half, ...]

    @property
    def tokens(self) -> int:
        """Tokens of prompt and completion, summed over the halves."""
        return sum(len(self.prompt_ids) + len(half.ids) for half in self.halves)

    def with_reference(self, logps: Sequence[float]) -> Example:
        """The same row with the reference's log-probabilities of its halves."""
        return replace(self, halves=tuple(replace(half, reference_logp=logp) for half, logp in zip(self.halves, logps, strict=True)))


def from_prompt(row: Prompt) -> Example:
    """The ground truth alone."""
    return Example(f"prompt {row.prompt_id}", row.prompt_ids, (Half(row.real_ids, True),))


def from_pair(row: Pair) -> Example:
    """Both halves."""
    name = f"labelled pair {row.prompt_id}" if row.iteration < 0 else f"prompt {row.prompt_id} sample {row.sample_index} of iteration {row.iteration}"
    return Example(name, row.prompt_ids, (Half(row.real_ids, True, row.reference_real_logp), Half(row.generated_ids, False, row.reference_generated_logp)))


def from_rating(row: Rating) -> Example:
    """The rated completion."""
    return Example(f"rating {row.rating_id}", row.prompt_ids, (Half(row.completion_ids, row.desirable, row.reference_logp),))


def epoch_order(examples: Sequence[Example], seed: int, iteration: int, epoch: int) -> list[int]:
    """The order of one epoch's rows: depends on nothing but its arguments. `iteration` is -1 for the warm start.

    Rows of one prompt stay together, so that they share it. Pairs, desirable and undesirable ratings are each shuffled, then spread evenly: every stretch of
    the order mixes both labels.
    """
    rng = np.random.default_rng([seed, iteration + 1, epoch])
    kinds: dict[tuple[bool, ...], dict[tuple[int, ...], list[int]]] = {}
    for index, example in enumerate(examples):
        kind = tuple(half.desirable for half in example.halves)
        kinds.setdefault(kind, {}).setdefault(tuple(example.prompt_ids), []).append(index)
    spread: list[tuple[float, int, list[int]]] = []
    for number, kind in enumerate(sorted(kinds)):
        prompts = list(kinds[kind].values())
        spread += [((position + 0.5) / len(prompts), number, prompts[i]) for position, i in enumerate(rng.permutation(len(prompts)))]
    return [index for _, _, indices in sorted(spread, key=lambda entry: entry[:2]) for index in indices]


def merge(examples: Sequence[Example]) -> tuple[list[Group], list[tuple[int, tuple[int, ...]]]]:
    """Groups in which no prompt and no completion of a prompt stands twice, and for each example its group and the places of its halves in it."""
    groups: dict[tuple[int, ...], int] = {}
    completions: list[dict[tuple[int, ...], int]] = []
    places = []
    for example in examples:
        group = groups.setdefault(tuple(example.prompt_ids), len(groups))
        if group == len(completions):
            completions.append({})
        own = completions[group]
        places.append((group, tuple(own.setdefault(tuple(half.ids), len(own)) for half in example.halves)))
    return [Group(list(prompt), [list(ids) for ids in own]) for prompt, own in zip(groups, completions, strict=True)], places


def mismatched(examples: Sequence[Example]) -> list[Example]:
    """For KTO's z: each example's prompt with the completions of the next example that has another prompt; none when all share one prompt."""
    if all(example.prompt_ids == examples[0].prompt_ids for example in examples):
        return [replace(example, halves=()) for example in examples]
    count, following = len(examples), [0] * len(examples)
    nearest = 0
    for index in range(2 * count - 1, -1, -1):  # twice round, since the last ones look past the end
        here, after = examples[index % count], examples[(index + 1) % count]
        nearest = (index + 1) % count if after.prompt_ids != here.prompt_ids else nearest
        following[index % count] = nearest
    return [replace(example, halves=examples[other].halves) for example, other in zip(examples, following, strict=True)]
