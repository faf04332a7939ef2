"""What an objective does in a training stage: prepare rows, sum up a step, compute losses.

    rows ── prepare_rows ──► batch ── statistics_rows ──► reduce_statistics     once a step
                               │                               │
                               └── forward pass ── logps ──────┴──► compute_loss ──► name_metrics

The trainer knows none of the objectives by name: it calls these methods. To add an objective, see
CONTRIBUTING.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spin.config.objective import loss_arguments
from spin.config.objective_base import Need, ObjectiveConfig, RowType
from spin.data.examples import Example
from spin.models.token_logps import TokenLogps
from spin.objectives.completion_logps import CompletionLogps, Member, gather_completions

ScoreFunction = Callable[[Sequence[Example]], list[Example]]
"""Return rows with the log-probabilities of the reference; the workers share the work."""


@dataclass(frozen=True)
class LossOutput:
    """The part of one forward pass in the loss and the metrics of a step."""

    loss: Tensor
    """Added over all passes and workers, it gives the loss of the step. Shape ()."""
    metric_sums: Tensor
    """Added over all passes and workers, what `name_metrics` takes. float64."""


@dataclass
class StepBatch:
    """The rows of one optimizer step, over all forward passes and workers."""

    rows: Sequence[Example]
    objective: Objective
    pretraining: Sequence[Example] = ()
    """Ground truths whose likelihood is trained beside the rows (PPO-ptx)."""

    def __post_init__(self) -> None:
        target_tokens = 0
        for row in self.rows:
            target_tokens += sum(len(completion.ids) for completion in row.completions if completion.desirable)
        self.target_tokens = max(1, target_tokens)
        """Tokens of the chosen or desirable completions; at least 1."""
        self.completion_tokens = sum(row.completion_tokens for row in self.rows)
        """Tokens of all completions."""
        self.pretraining_tokens = sum(row.completion_tokens for row in self.pretraining)
        """Tokens of the completions of `pretraining`."""
        self.tokens = sum(row.tokens for row in self.all_rows)
        """Tokens of all prompts and completions."""
        self.denominator = self.objective.count_units(self)
        """By what the sum of the losses is divided."""

    @property
    def all_rows(self) -> list[Example]:
        """Return everything that is computed in the step."""
        return [*self.rows, *self.pretraining]


class Objective(ABC):
    """An objective with its settings."""

    METRIC_SUMS: ClassVar[tuple[str, ...]] = (
        "loss",
        "chosen",
        "logps/chosen",
        "rewards/chosen",
        "rejected",
        "logps/rejected",
        "rewards/rejected",
        "pairs",
        "rewards/margins",
        "rewards/accuracies",
    )
    """Sums over a step: of the loss; of chosen completions, of rejected ones, and of pairs. The
    number of each comes before its figures."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.arguments = loss_arguments(config)
        self.beta = float(self.arguments.get("beta", 1.0))
        """Scale of the logged rewards."""
        self.base_weight = float(getattr(config, "base_weight", 0.0))
        """α of log π_ref = (1 − α) log π_opponent + α log π_base; 0 for a single reference."""

    def check_user_code(self) -> list[str]:
        """Try the user's own code, if there is any, before anything is started.

        Returns:
            Lines on what it was given and what it returned.

        Raises:
            ConfigError: It cannot be used.
        """
        return []

    @property
    def row_type(self) -> RowType:
        """Return the kind of rows that a loss is computed for."""
        return self.config.row_type

    @property
    def needs(self) -> frozenset[Need]:
        """Return what the objective needs beside the log-probabilities of the policy."""
        return self.config.needs

    def prepare_rows(self, rows: Sequence[Example], score: ScoreFunction) -> list[Example]:
        """Return all rows of the stage with what this objective adds to them.

        Called before training if Need.all_rows is in `needs`.
        """
        return list(rows)

    def statistics_rows(self, rows: Sequence[Example]) -> list[Example]:
        """Return the rows whose log-ratios the statistics of a step are computed from.

        Called if Need.step_statistics is in `needs`.
        """
        return list(rows)

    def reduce_statistics(self, ratio_sums: Tensor) -> Tensor:
        """Return the statistics of a step, which `compute_losses` takes.

        Args:
            ratio_sums: Over all workers, the sum and the number of the log-ratios of the
                desirable completions, then of the others. Shape (2, 2), float64.
        """
        raise NotImplementedError

    @abstractmethod
    def count_units(self, batch: StepBatch) -> int:
        """Return by what the sum of the losses of a step is divided."""

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each unit of a forward pass. Shape (units,).

        Every objective has this method or a `compute_loss` of its own.
        """
        raise NotImplementedError

    def compute_loss(
        self, batch: StepBatch, logps: TokenLogps, members: Sequence[Member], statistics: Tensor | None
    ) -> LossOutput:
        """Return the part of a forward pass in the mean loss of the step.

        Args:
            batch: All rows of the step.
            logps: Log-probabilities of the completion tokens of the pass.
            members: The rows of the pass.
            statistics: What `reduce_statistics` returned; None without statistics.
        """
        # The objective's own loss, as its share of the mean over the whole step.
        completions = gather_completions(logps.sums(), members, self.base_weight)
        losses = self.compute_losses(completions, statistics)
        loss = losses.sum() / batch.denominator

        # The likelihood of the targets, a mean over the tokens of the whole step.
        target_logps = completions.policy[completions.chosen].sum()
        loss = loss - self.config.sft_weight * target_logps / batch.target_tokens
        with torch.no_grad():
            return LossOutput(loss, self.sum_metrics(loss, completions))

    def sum_metrics(self, loss: Tensor, completions: CompletionLogps) -> Tensor:
        """Return the figures of METRIC_SUMS for one pass. Shape (len(METRIC_SUMS),), float64."""
        # Implicit rewards, arXiv 2305.18290 section 5.
        rewards = self.beta * (completions.policy - completions.reference)
        sums = [loss]
        for indices in (completions.chosen, completions.rejected):
            sums += [loss.new_full((), len(indices)), completions.policy[indices].sum(), rewards[indices].sum()]
        # The chosen completion of a pair stands before the rejected one.
        pairs = rewards[completions.paired].view(-1, 2)
        margins = pairs[:, 0] - pairs[:, 1]
        sums += [margins.new_full((), len(margins)), margins.sum(), (margins > 0).double().sum()]
        return torch.stack(sums).double()

    def name_metrics(self, batch: StepBatch, sums: Tensor, statistics: Tensor | None) -> dict[str, Any]:
        """Return the figures of a step under the names that TRL uses.

        `kl` is the mean of log π_ref − log π over the rejected completions, an estimate of
        KL(π_ref‖π) where the reference wrote them.

        Args:
            batch: All rows of the step.
            sums: `LossOutput.metric_sums` added over all passes and workers.
            statistics: What `reduce_statistics` returned; None without statistics.
        """
        # Each sum is divided by the number of what it is about; a step may have no pairs.
        total = dict(zip(self.METRIC_SUMS, sums.tolist(), strict=True))
        metrics = {"loss": total["loss"]}
        for count, names in (
            ("chosen", self.METRIC_SUMS[2:4]),
            ("rejected", self.METRIC_SUMS[5:7]),
            ("pairs", self.METRIC_SUMS[8:]),
        ):
            for name in names:
                if total[count]:
                    metrics[name] = total[name] / total[count]
        # rewards/rejected is β times a mean log-ratio, in nats a completion.
        if total["rejected"]:
            metrics["kl"] = -metrics["rewards/rejected"] / self.beta
        metrics["tokens"] = batch.tokens
        return metrics

    def should_stop(self, metrics: Mapping[str, Any]) -> bool:
        """Return whether training ends after the step with these metrics."""
        return False
