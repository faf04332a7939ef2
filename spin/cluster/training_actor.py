"""The Ray actor around one rank of the trainer; it stays up for the whole run.

Every call names the policy by path and digest, so that a restarted actor cannot use an older one.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray

from spin.cluster.memory import measure_peak_memory
from spin.cluster.training_rows import open_pretraining_rows, open_row_stream
from spin.config.adapter import Serve
from spin.config.run import RunConfig
from spin.feedback.judged_rankings import RankingsJob, write_rankings
from spin.feedback.reward_files import RewardsJob, write_rewards
from spin.feedback.reward_sources import ModelReward, RewardSource, RewardSourceCache
from spin.feedback.rows import RowsJob
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.models.policy_export import check_finite
from spin.models.scalar_head import Head
from spin.run_dir.files import digest_files
from spin.run_dir.store import RunStore
from spin.training import reference, reward_scoring
from spin.training.job import TrainingJob
from spin.training.reference import LabelledJob
from spin.training.reward_scoring import EvaluationJob


@ray.remote(concurrency_groups={"watch": 2})
class TrainingWorker:
    """One rank of the trainer; `watch` returns its reports, `save` asks for its state."""

    def __init__(self, config: RunConfig, rank: int, world: int, stop_ids: tuple[int, ...], store: RunStore) -> None:
        """Make one rank of the trainer.

        Args:
            config: the run's config.
            rank: from 0 to `world` - 1.
            world: number of ranks.
            stop_ids: ids that end an answer, for the generation config of the policies.
            store: the run directory, for inputs and for pairs, states and policies.
        """
        self._store = store
        self._config = config
        self._rank = rank
        self._world = world
        self._stop_ids = stop_ids
        # Set before torch is imported: Ray sets 1.
        os.environ["OMP_NUM_THREADS"] = str(config.cluster.trainer_threads)
        # Passes differ in length: otherwise a GPU's memory falls apart into pieces of their sizes.
        if "PYTORCH_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        self._trainer: Any = None
        self._reward_sources = RewardSourceCache()
        self._events: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def address(self) -> tuple[str, int]:
        """Return a host and a free port on which rank 0 can listen for the others."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, address: tuple[str, int]) -> None:
        """Join the process group of rank 0 at `address`, and import what training needs."""
        if self._world > 1:
            host, port = address
            # Each worker sees its own GPU only, as device 0.
            os.environ.update(
                MASTER_ADDR=host,
                MASTER_PORT=str(port),
                RANK=str(self._rank),
                LOCAL_RANK="0",
                WORLD_SIZE=str(self._world),
            )
        import torch

        torch.set_num_threads(self._config.cluster.trainer_threads)
        from spin.training.trainer import Trainer

        config = self._config
        self._trainer = Trainer(
            config.model.dtype,
            config.model.trust_remote_code,
            config.training.sharding,
            self._store,
            config.adapter,
            config.seed,
        )

    def set_budget(self, tokens: int) -> None:
        """Set the tokens of a pass; all workers and resumes need the same to round sums alike."""
        self._trainer.token_budget = tokens

    def find_budget(self, policy: Policy, own_critic: bool) -> int:
        """Return the tokens of a forward pass that fit beside a policy, and a critic of its own."""
        # Workers on CPUs share the memory of the machine. A GPU has one trainer, and its engine, if
        # they are colocated, sleeps while the trainer works.
        share = 1.0
        if self._trainer.accelerator.device.type == "cpu":
            share = 1 / self._world
        self._fetch(policy)
        training = self._config.training
        settings = (training.gradient_checkpointing, training.compile_layers, own_critic)
        return self._trainer.find_token_budget(policy, share, *settings)

    def memory(self) -> dict[str, float]:
        """Return the peak memory of this actor in GiB."""
        return measure_peak_memory()

    def check(self, policy: Policy) -> None:
        """Load a policy; raises CheckpointError if a key, a shape or a value is wrong."""
        self._fetch(policy)
        self._trainer.load(policy, self._config.training)
        check_finite(self._trainer.model.named_parameters(), policy.path)

    def release(self) -> None:
        """Free all memory that the next call does not need."""
        self._trainer.release()

    def score_rewards(self, job: RewardsJob) -> dict[str, Any]:
        """Let one reward source score one shard of samples; writes one finished file of rewards."""
        for path in (job.prompts, job.samples):
            self._store.fetch(Path(path))
        model = job.model
        source: RewardSource
        if model is not None:
            source = ModelReward(lambda groups: self.score_groups(model, groups))
        else:
            source = self._reward_sources.get(job.reward, job.config)
        facts = write_rewards(source, job)
        self._store.publish(Path(job.out))
        return facts

    def score_groups(self, model: Policy, groups: list[Group]) -> list[list[float]]:
        """Return the reward of each completion under a reward model, group by group."""
        if not self._trainer.holds(model, Head.scalar):
            self._store.fetch(Path(model.path))
        settings = self._config.reward_model
        return reward_scoring.score_groups(self._trainer, model, groups, self._config.training, settings.center)

    def score_rows(self, job: RowsJob) -> dict[str, Any]:
        """Turn one shard of samples into one finished shard of scored pairs or ratings."""
        for path in job.inputs:
            self._store.fetch(path)
        self._fetch(job.reference)
        if job.base is not None:
            self._fetch(job.base)
        if job.critic is not None:
            self._store.fetch(Path(job.critic.path))
        facts = reference.score_rows(self._trainer, job)
        self._store.publish(Path(job.out))
        return facts

    def score_labelled(self, job: LabelledJob) -> dict[str, Any]:
        """Score a set of labelled pairs or ratings."""
        self._store.fetch(Path(job.path))
        self._fetch(job.reference)
        if job.base is not None:
            self._fetch(job.base)
        facts = reference.score_labelled(self._trainer, job)
        self._store.publish(Path(job.out))
        return facts

    def logps(self, policy: Policy, groups: list[Group]) -> list[list[float]]:
        """Return the log-probability (nats) of each completion under a policy, group by group."""
        self._fetch(policy)
        return self._trainer.score(policy, groups, self._config.training)

    def _fetch(self, policy: Policy) -> None:
        """Fetch the files of a policy that the trainer is about to load."""
        if not self._trainer.holds(policy):
            for folder in policy.folders:
                self._store.fetch(folder)

    def train(self, job: TrainingJob) -> dict[str, Any] | None:
        """Train on finished shards; rank 0 reports each step and exports the policy."""
        try:
            # Without a queue all shards are finished: read them before the weights are loaded.
            rows = open_row_stream(job, self._store)
            if job.queue is None:
                rows.all()
            self._fetch(job.reference)
            self._fetch(job.policy)
            if job.critic is not None:
                self._store.fetch(Path(job.critic.path))
            pretraining = open_pretraining_rows(job, self._store)

            # Report each step with the seconds since the one before.
            before = time.perf_counter()
            for event in self._trainer.train(job, rows, pretraining):
                now = time.perf_counter()
                if self._rank == 0:
                    self._events.put({**event, "seconds": now - before})
                before = now

            # All workers compute these together; rank 0 alone writes the weights.
            bias = self._center(job)
            state, critic_state = self._trainer.gathered(), self._trainer.gathered_critic()
            if self._rank != 0:
                return None
            digests = self._export(job, state, critic_state, bias)
            return {**digests, "note": self._trainer.note, "steps": self._trainer.steps_taken}
        finally:
            # End the driver's loop, after an error too.
            self._events.put(None)

    def _export(self, job: TrainingJob, state: Any, critic_state: Any, bias: float) -> dict[str, str]:
        """Write the trained policy and its adapter, or the reward model; return their digests."""
        from transformers import AutoTokenizer

        from spin.models.adapter_files import name_base
        from spin.models.critic_export import export_critic
        from spin.models.lora import merge_adapter
        from spin.models.policy_export import export_adapter, export_policy
        from spin.models.reward_export import RewardFacts, export_reward_model

        model, settings = self._trainer.model, self._config.model
        tokenizer = AutoTokenizer.from_pretrained(job.policy.path, trust_remote_code=settings.trust_remote_code)
        arguments = (model, tokenizer, Path(job.out), settings.dtype.name, self._stop_ids)
        adapter = self._config.adapter
        if job.head is Head.scalar:
            # A reward model is always a whole one, for transformers and vLLM.
            if adapter.enabled:
                state = merge_adapter(model, state)
            facts = RewardFacts(bias, digest_files([Path(path) for _, path in job.others]))
            digest = export_reward_model(*arguments, facts, state)
            self._store.publish(Path(job.out))
            return {"digest": digest, "adapter": ""}

        digest = adapter_digest = ""
        serves_adapter = adapter.enabled and adapter.serve is Serve.adapter
        if adapter.enabled:
            folder, tokenizer_beside = Path(job.adapter_out), None
            if serves_adapter:
                folder, tokenizer_beside = Path(job.out), tokenizer
            base = job.policy.base
            name = name_base(Path(base.path), settings.path, folder, self._store.root)
            digest = adapter_digest = export_adapter(model, folder, base, name, tokenizer_beside, state)
            self._store.publish(folder)
            if not serves_adapter:
                state = merge_adapter(model, state)

        # The driver announces the policy, so it must be complete for everybody.
        if not serves_adapter:
            digest = export_policy(*arguments, state)
            self._store.publish(Path(job.out))
        critic_digest = ""
        if job.critic is not None:
            critic, folder = self._trainer.critic_model, Path(job.critic_out)
            critic_digest = export_critic(critic, tokenizer, folder, settings.dtype.name, critic_state)
            self._store.publish(Path(job.critic_out))
        return {"digest": digest, "adapter": adapter_digest, "critic": critic_digest}

    def _center(self, job: TrainingJob) -> float:
        """Return the mean reward of the ground truths; 0 for a policy. Collective."""
        if job.truths is None:
            return 0.0
        self._store.fetch(Path(job.truths))
        truths = reward_scoring.read_truths(Path(job.truths))
        return reward_scoring.compute_mean_reward(self._trainer, truths, job.training)

    def write_rankings(self, job: RankingsJob) -> dict[str, Any]:
        """Rank the samples of an iteration for a reward model; writes one finished file."""
        for path in job.inputs:
            self._store.fetch(path)
        facts = write_rankings(job)
        self._store.publish(Path(job.out))
        return facts

    def evaluate_reward_model(self, job: EvaluationJob) -> dict[str, Any]:
        """Measure a reward model on held-out rankings; writes one finished file of figures."""
        for path in job.rankings:
            self._store.fetch(Path(path))
        self._store.fetch(Path(job.model.path))
        facts = reward_scoring.evaluate_reward_model(self._trainer, job)
        self._store.publish(Path(job.out))
        return facts

    @ray.method(concurrency_group="watch")
    def watch(self) -> list[dict[str, Any] | None]:
        """Return the reports of `train` since the last call; wait for one. None: it ended."""
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        return events

    @ray.method(concurrency_group="watch")
    def save(self) -> None:
        """Ask `train` to save its state after the current step."""
        self._trainer.save_requested.set()
