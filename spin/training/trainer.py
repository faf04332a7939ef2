"""One training stage on all workers of accelerate.

    batch ──► forward passes ──► log-probabilities ──► objective ──► gradient ──► optimizer step

Other modules decide which rows come in which order (`batches.py`), how log-probabilities are
computed (`spin.models.forward`) and what the loss is (`spin.objectives`).
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from spin.config.adapter import AdapterConfig
from spin.config.objective_base import Need
from spin.config.reward_model import BradleyTerryObjective, HeadInit
from spin.config.training import Dtype, Sharding, TrainingConfig
from spin.data.examples import Example
from spin.errors import TrainingError
from spin.models.packing import Group
from spin.models.scalar_head import Head, draw_head, has_new_head
from spin.objectives.objective import StepBatch
from spin.objectives.ppo import PpoLoss
from spin.objectives.registry import make_objective
from spin.run_dir.store import LOCAL_STORE, RunStore
from spin.training.batches import batches, group_by_prompt
from spin.training.checkpoint import Saver
from spin.training.critic import Critic, CriticHead, SeparateCritic, find_critic_rate
from spin.training.job import TrainingJob
from spin.training.loss_check import PassLoss, check_losses
from spin.training.optimizer import make_optimizer, make_schedule, set_rates
from spin.training.passes import explain_out_of_memory, plan_passes, share_of_worker
from spin.training.policy_scorer import PolicyScorer
from spin.training.pretraining_rows import PretrainingRows
from spin.training.row_stream import RowStream
from spin.training.sharding import clip_gradient, exchange_in_pass, full_state, prepare
from spin.training.step0_check import check_new_rewards, check_step0


class Trainer(PolicyScorer):
    """Trains the policy that it holds; between stages it scores with the reference."""

    def __init__(
        self,
        dtype: Dtype,
        trust_remote_code: bool = False,
        sharding: Sharding = Sharding.none,
        store: RunStore = LOCAL_STORE,
        adapter: AdapterConfig | None = None,
        seed: int = 0,
    ) -> None:
        """See PolicyScorer."""
        super().__init__(dtype, trust_remote_code, sharding, store, adapter, seed)
        self.save_requested = threading.Event()
        """Set to have the state saved after the current step."""
        self.critic_model: Any = None
        """The critic that the last stage has trained: a model, or the head on the policy."""
        self.steps_taken = 0
        """Optimizer steps of the stage so far, those before a saved state included."""

    def train(
        self, job: TrainingJob, rows: RowStream, pretraining: PretrainingRows | None = None
    ) -> Iterator[dict[str, Any]]:
        """Train and yield the metrics of each optimizer step; `model` is the outcome.

        With `job.states`, states are saved as `training.checkpoint_every` says. After such a step
        the metrics have the digest of the complete folder (``saved``) and the number of chunks
        that its rows came from (``chunks``).

        Args:
            job: The stage.
            rows: Its rows.
            pretraining: Ground truths to train beside the rows; None for none.

        Raises:
            TrainingError: The reference is the starting policy, but the first log-probabilities
                are not those of the reference; or a loss or a gradient is not finite.
        """
        # Prepare the rows with the reference, then load the policy: there is memory for one model.
        training = job.training
        objective = make_objective(job.objective)
        self.steps_taken, self.critic_model = 0, None
        if Need.all_rows in objective.needs:
            rows.replace_all(objective.prepare_rows(rows.all(), self._make_score_function(job)))
        self.load(job.policy, training, job.head, is_trained=True, critic_head=job.critic_head)
        self.choose_layout(training, group_by_prompt(rows.some()[:64])[0], job.head)
        starts_at_zero = job.head is Head.scalar and has_new_head(self.model)
        wanted_head = HeadInit.zeros
        if isinstance(job.objective, BradleyTerryObjective):
            wanted_head = job.objective.head_init
        if starts_at_zero and wanted_head is HeadInit.normal:
            draw_head(self.model, job.seed)
            starts_at_zero = False
        # From here on the weights are those of no known policy.
        self._held = None

        # Optimizer and schedule; the schedule assumes that no row was dropped.
        head, head_rate = None, 0.0
        if job.critic_head is not None:
            head, head_rate = self.scorer.value_head, find_critic_rate(job.objective, training)
        optimizer = make_optimizer(self.model, training, head, head_rate)
        planned_steps = job.fixed_steps or math.ceil(sum(rows.sizes) / training.batch_size) * training.epochs
        rates_at = make_schedule(optimizer, training, planned_steps)
        model, optimizer = prepare(self.accelerator, self.scorer, optimizer)
        critic: Critic | None = None
        if job.critic is not None:
            assert isinstance(objective, PpoLoss)
            shared = (self.accelerator, objective, self.dtype)
            if head is not None:
                critic = CriticHead(*shared, head)
            else:
                critic = SeparateCritic(*shared, training, planned_steps, job.critic, self.scorer.layout)

        # Continue from a saved state.
        saver = None
        if job.states is not None:
            saver = Saver(self.accelerator, Path(job.states), training, self.save_requested.is_set, store=self._store)
        if job.resume_step:
            assert saver is not None
            saver.load(job.resume_step)

        # Take the steps. Those before the saved state are counted, not computed.
        epochs = None if job.fixed_steps else training.epochs
        starts_at_reference = Need.reference in objective.needs and job.reference.digest == job.policy.digest
        starts_as_expected = starts_at_reference or starts_at_zero
        order = batches(rows, job.seed, job.iteration, epochs, training.batch_size)
        for step, (indices, place) in enumerate(itertools.islice(order, job.fixed_steps), start=1):
            self.steps_taken = step
            if step <= job.resume_step:
                continue
            set_rates(optimizer, rates_at(place))
            batch = StepBatch([rows.examples[index] for index in indices], objective)
            if pretraining is not None:
                batch = StepBatch(batch.rows, objective, pretraining.take(step))
            metrics = self.step(model, optimizer, batch, training, step == 1 and starts_as_expected, critic)
            if critic is not None:
                metrics |= critic.step(batch, place)
            total = job.fixed_steps or rows.steps(training.batch_size) * training.epochs
            metrics = {"step": step, "steps": total, "learning_rate": rates_at(place)[0], **metrics}
            stopped = objective.should_stop(metrics)
            if stopped:
                metrics["skipped"] = total - step
            # The last state is not saved, because the policy is exported at once.
            if saver is not None and step < total and not stopped and saver.due(step):
                metrics["saved"] = saver.save(step)
                metrics["chunks"] = len(rows.taken)
            yield metrics
            if stopped:
                break

        if critic is not None:
            self.critic_model = critic.model
        self.scorer = self.accelerator.unwrap_model(model)
        self.note = self.scorer.note or self.note
        self.accelerator.free_memory()
        # The base of several workers is in parts, or has the hooks of DDP: it is loaded again.
        if self.accelerator.num_processes > 1:
            self._base = None

    def release(self) -> None:
        """See PolicyScorer."""
        self.critic_model = None
        super().release()

    def gathered(self) -> dict[str, Tensor] | None:
        """Return the trained weights if the workers share them. Collective.

        Returns:
            All weights on rank 0 and none on the others; None if `model` has them whole.
        """
        if self.accelerator.is_fsdp2:
            return full_state(self.model)
        return None

    def gathered_critic(self) -> dict[str, Tensor] | None:
        """Return the weights of the trained critic, as `gathered` does; None without one."""
        if self.critic_model is not None and self.accelerator.is_fsdp2:
            return full_state(self.critic_model)
        return None

    def _make_score_function(self, job: TrainingJob) -> Any:
        """Return a function that scores rows under the reference; all workers share the work."""

        def score_rows(rows: Sequence[Example]) -> list[Example]:
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            own = share_of_worker(rows, rank, world)
            groups = []
            for index in own:
                completions = [completion.ids for completion in rows[index].completions]
                groups.append(Group(rows[index].prompt_ids, completions))
            scores = self.score(job.reference, groups, job.training)
            scored = dict(zip(own, scores, strict=True))
            # Exchange the scores.
            if world > 1:
                for part in gather_object([scored]):
                    scored |= part
            return [row.with_reference(scored[index]) for index, row in enumerate(rows)]

        return score_rows

    @torch.no_grad()
    def _compute_statistics(self, model: Any, batch: StepBatch, filler: Group, budget: int) -> Tensor:
        """Return the statistics of a step for its objective, reduced over all workers."""
        # [desirable or not, sum and number of the log-ratios]
        sums = torch.zeros(2, 2, dtype=torch.float64, device=self.accelerator.device)
        rows = batch.objective.statistics_rows(batch.rows)
        for forward_pass in plan_passes(rows, budget, self.scorer.layout, self.accelerator):
            with explain_out_of_memory(forward_pass.groups):
                logps = model(forward_pass.groups or [filler]).sums()
            for row, places in forward_pass.members:
                for completion, place in zip(row.completions, places, strict=True):
                    ratio = logps[place] - completion.reference_logp
                    sums[int(not completion.desirable)] += torch.stack([ratio, logps.new_ones(())])
        return batch.objective.reduce_statistics(self.accelerator.reduce(sums, "sum"))

    def step(
        self,
        model: Any,
        optimizer: Any,
        batch: StepBatch,
        training: TrainingConfig,
        check_start: bool,
        critic: Critic | None = None,
    ) -> dict[str, Any]:
        """Take one optimizer step over a batch; every worker computes its part of the rows.

        Args:
            model: The prepared model.
            optimizer: Its optimizer.
            batch: All rows of the step.
            training: Settings of the stage.
            check_start: Whether the policy must equal its reference, and a reward be 0.
            critic: The critic of PPO, which gets its gradient too; the caller lets it step.

        Returns:
            The metrics of the step.

        Raises:
            TrainingError: A loss or the gradient is not finite, or the check failed.
        """
        world = self.accelerator.num_processes
        budget = training.micro_batch_tokens or self.token_budget
        objective = batch.objective
        # A worker without rows still takes part in every exchange, with this group at weight 0.
        filler = group_by_prompt(batch.rows[:1])[0][0]
        statistics = None
        if Need.step_statistics in objective.needs:
            statistics = self._compute_statistics(model, batch, filler, budget)

        sums = torch.zeros(len(objective.METRIC_SUMS), dtype=torch.float64, device=self.accelerator.device)
        passes = plan_passes(batch.all_rows, budget, self.scorer.layout, self.accelerator)
        losses: list[PassLoss] = []
        with ExitStack() as kept:
            kept.enter_context(self.scorer.weights_kept())
            if critic is not None:
                kept.enter_context(critic.weights_kept())
            for number, forward_pass in enumerate(passes):
                is_last = number == len(passes) - 1
                members = forward_pass.members
                exchange = exchange_in_pass(self.accelerator, model, is_last)
                with explain_out_of_memory(forward_pass.groups), exchange:
                    logps = model(forward_pass.groups or [filler])
                    if members:
                        if check_start and Need.reference in objective.needs:
                            check_step0(logps, members, self.dtype)
                        elif check_start:
                            check_new_rewards(logps, members)
                        output = objective.compute_loss(batch, logps, members, statistics)
                        loss = output.loss
                        sums += output.metric_sums
                    else:
                        loss = 0.0 * logps.values.sum()
                    if critic is not None:
                        loss = loss + critic.loss_in_pass(batch, logps, members, check_start)
                    losses.append(PassLoss(loss.detach(), logps.sums().detach(), members))
                    # The exchange divides by the number of workers.
                    self.accelerator.backward(loss * world)
                if critic is not None:
                    with critic.exchange_in_pass(is_last):
                        critic.add_gradient(batch, forward_pass.groups or [filler], members, check_start)

        check_losses(losses)
        sums = self.accelerator.reduce(sums, "sum")
        norm = clip_gradient(model, training.max_grad_norm)
        if not math.isfinite(norm):
            names = ", ".join(row.name for row in batch.rows[:5])
            raise TrainingError(f"the gradient is not finite in a batch of {names}, …; lower training.learning_rate")
        optimizer.step()
        optimizer.zero_grad()
        return {**objective.name_metrics(batch, sums, statistics), "grad_norm": norm}
