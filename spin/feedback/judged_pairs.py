"""Pairs and ratings from a judge's comparisons or scores of the answers to a prompt."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import torch

from spin.config.groups import FeedbackConfig
from spin.config.judge import Contestants, JudgedPairChoice, OnFailure, OnTie
from spin.config.objective import PsipoObjective
from spin.config.objective_base import ObjectiveConfig
from spin.data.records import Pair, Rating
from spin.feedback.judge_comparison import TRUTH, list_contestants, make_preference_matrix
from spin.feedback.judge_scores import make_score_matrix
from spin.feedback.row_builder import Built, RowBuilder, make_pair, make_rating
from spin.feedback.sample_group import SampleGroup
from spin.objectives.psi import PsiFunction, compute_targets, is_antisymmetric, make_psi


class JudgedPairs(RowBuilder):
    """Pairs of the answers that `feedback.judged.pairs` names, with the judge's preference.

    The answer that the judge prefers is chosen. The ground truth is chosen in each of its pairs;
    the preference is below ½ if the judge prefers the sample. Scores give hard labels: the answer
    with the higher score is preferred.
    """

    uses_judgements = True
    soft_labels = True

    def __init__(self, feedback: FeedbackConfig) -> None:
        super().__init__(feedback)
        self._settings = feedback.judged
        self._psi: PsiFunction | None = None
        self._needs_all = False
        """Whether Ψ can only be computed from all comparisons of a prompt."""
        # Two samples, or the truth and one sample.
        self.min_samples = 2
        if self._settings.contestants is Contestants.truth_and_samples:
            self.min_samples = 1

    def use_objective(self, objective: ObjectiveConfig) -> None:
        """See RowBuilder."""
        self._psi = None
        self._needs_all = False
        if isinstance(objective, PsipoObjective):
            self._psi = make_psi(objective.psi, objective.clamp)
            self._needs_all = not is_antisymmetric(self._psi)

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        # P(i is better than j); failures may count as undecided.
        answers = list_contestants(group, self._settings.contestants)
        if group.scores:
            matrix = make_score_matrix(answers, group.scores, self._settings.tie_band)
        else:
            matrix = make_preference_matrix(answers, group.judgements)
        if self._settings.on_failure is OnFailure.half:
            matrix = [[0.5 if math.isnan(value) else value for value in row] for row in matrix]
        win_rates = [_mean_known(row) for row in matrix]
        chosen_pairs = self._choose_pairs(answers, win_rates)
        is_complete = not any(math.isnan(value) for row in matrix for value in row)
        if self._needs_all and not is_complete:
            return [], {"judge_failed": len(chosen_pairs)}

        pairs: list[Pair] = []
        dropped: dict[str, int] = {}
        for i, j in chosen_pairs:
            reason, preference = self._decide(matrix[i][j])
            if reason is not None:
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            # The better answer is chosen; the truth always is, since no engine sampled it.
            if preference < 0.5 and answers[i] != TRUTH:
                i, j, preference = j, i, 1 - preference
            pair = self._make_pair(group, answers[i], answers[j])
            pair = replace(pair, preference=preference, chosen_win_rate=win_rates[i], rejected_win_rate=win_rates[j])
            pairs.append(replace(pair, target=self._find_target(matrix, i, j)))
        return pairs, dropped

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        num_answers = num_samples + 2 - self.min_samples
        counts = {
            JudgedPairChoice.all: num_answers * (num_answers - 1) // 2,
            JudgedPairChoice.truth: num_samples,
            JudgedPairChoice.best_worst: 1,
            JudgedPairChoice.best_rest: num_answers - 1,
        }
        return counts[self._settings.pairs]

    def _choose_pairs(self, answers: list[int], win_rates: list[float]) -> list[tuple[int, int]]:
        """Return pairs of positions in `answers`; the truth is the first of its pairs."""
        positions = range(len(answers))
        choice = self._settings.pairs
        if choice is JudgedPairChoice.all:
            return list(combinations(positions, 2))
        if choice is JudgedPairChoice.truth:
            return [(0, position) for position in positions[1:]]
        # Of equal win rates, the first answer is the best and the last one the worst.
        best = max(positions, key=lambda position: win_rates[position])
        others = [position for position in positions if position != best]
        if choice is JudgedPairChoice.best_worst:
            others = [min(reversed(others), key=lambda position: win_rates[position])]
        # The truth has the lowest position.
        return [(min(best, other), max(best, other)) for other in others]

    def _decide(self, preference: float) -> tuple[str | None, float]:
        """Return why a pair is left out, or None, and the preference that it is trained with."""
        if math.isnan(preference):
            return "judge_failed", preference
        if abs(preference - 0.5) < self._settings.tie_band:
            if self._settings.on_tie is OnTie.drop:
                return "tie", preference
            if self._settings.on_tie is OnTie.half:
                return None, 0.5
        return None, preference

    def _make_pair(self, group: SampleGroup, chosen: int, rejected: int) -> Pair:
        """Return the pair of two answers, named by their indices."""
        samples = {sample.sample_index: sample for sample in group.samples}
        chosen_ids = group.prompt.completion_ids
        if chosen != TRUTH:
            chosen_ids = samples[chosen].completion_ids
        return make_pair(group, chosen_ids, samples[rejected])

    def _find_target(self, matrix: list[list[float]], i: int, j: int) -> float:
        """Return the target of ΨPO; NaN if the objective needs none, or a comparison is missing."""
        preferences = torch.tensor(matrix, dtype=torch.float64)
        if self._psi is None or bool(preferences.isnan().any()):
            return math.nan
        return float(compute_targets(preferences, self._psi)[i, j])


class JudgedRatings(RowBuilder):
    """One rating for each sample: desirable if a judge's score is high enough.

    The least score is `feedback.judged.min_score`. Samples without a score are counted as
    ``judge_failed``.
    """

    row_type = Rating
    uses_judgements = True
    needs_scores = True

    def __init__(self, feedback: FeedbackConfig) -> None:
        super().__init__(feedback)
        self._min_score = feedback.judged.min_score

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        score_of = {score.sample_index: score for score in group.scores}
        ratings = []
        failed = 0
        for sample in group.samples:
            score = score_of[sample.sample_index]
            if score.failure is None:
                ratings.append(make_rating(group, sample, score.score > self._min_score))
            else:
                failed += 1
        if not failed:
            return ratings, {}
        return ratings, {"judge_failed": failed}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples


def _mean_known(values: list[float]) -> float:
    """Return the mean of the values that are not NaN; at least one is not."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known)
