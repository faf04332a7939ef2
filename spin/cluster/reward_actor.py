"""The Ray actor around a vLLM engine that holds the reward model (`reward_model.backend=vllm`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from spin.cluster.memory import measure_peak_memory
from spin.cluster.recovery import MAX_ATTEMPTS
from spin.config.cluster import Placement
from spin.config.run import RunConfig
from spin.feedback.reward_files import RewardsJob, write_rewards
from spin.feedback.reward_sources import ModelReward
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.models.reward_export import to_rewards
from spin.run_dir.store import RunStore


@ray.remote(max_restarts=-1, max_task_retries=MAX_ATTEMPTS - 1)
class RewardScorer:
    """One vLLM engine that holds the reward model."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        """Start the engine, without a model.

        Args:
            config: the run's config.
            store: the run directory, for samples and rewards.
        """
        from spin.generation.reward_engine import RewardEngine

        self._store = store
        self._center = config.reward_model.center
        self._engine = RewardEngine(
            config.model.dtype.name,
            config.max_prompt_length + config.generation.max_tokens,
            config.generation.kv_cache_gib,
            config.generation.find_memory_share(config.cluster.placement),
            config.model.trust_remote_code,
            config.cluster.placement is Placement.colocated,
        )

    def release(self) -> None:
        """Free the device's memory until the next call that needs the engine."""
        self._engine.sleep()

    def memory(self) -> dict[str, float]:
        """Return the peak memory of this actor in GiB."""
        return measure_peak_memory()

    @ray.method(max_task_retries=-1)
    def ping(self) -> None:
        """Return as soon as the actor is up: Ray repeats this call until then."""

    @ray.method(max_task_retries=0)  # the driver gives the shard to the engine again
    def score_rewards(self, job: RewardsJob) -> dict[str, Any]:
        """Score one shard of samples with the reward model; writes one finished file of rewards."""
        for path in (job.prompts, job.samples):
            self._store.fetch(Path(path))
        model = job.model
        assert model is not None
        facts = write_rewards(ModelReward(lambda groups: self._score(model, groups)), job)
        self._store.publish(Path(job.out))
        return facts

    def score_groups(self, model: Policy, groups: list[Group]) -> list[list[float]]:
        """Return the reward of each completion, group by group."""
        return self._score(model, groups)

    def _score(self, model: Policy, groups: list[Group]) -> list[list[float]]:
        """Return the rewards of groups under a model, which is fetched and loaded if need be."""
        folder = Path(model.path)
        if not self._engine.holds(model):
            self._store.fetch(folder)
        scores = self._engine.score_groups(model, groups)
        return [to_rewards(group_scores, folder, self._center) for group_scores in scores]
