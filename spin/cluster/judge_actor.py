"""The Ray actors of a judge: around a vLLM engine of its own, or the client of an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from spin.cluster.memory import measure_peak_memory
from spin.cluster.recovery import MAX_ATTEMPTS
from spin.config.cluster import Placement
from spin.config.run import RunConfig
from spin.feedback.endpoint import Secret
from spin.feedback.endpoint_judge import EndpointJudge
from spin.feedback.judge_setup import load_judge
from spin.feedback.judgement_files import JudgementsJob, write_judgements
from spin.feedback.local_judge import LocalJudge
from spin.feedback.reply_file import ReplyFile
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore


@ray.remote(max_restarts=-1, max_task_retries=MAX_ATTEMPTS - 1)
class Judge:
    """One vLLM engine that holds the judge."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        """Start the engine, without a model.

        Args:
            config: the run's config.
            store: the run directory, for samples and judgements.
        """
        from spin.generation.engine import Engine

        self._store = store
        self._judge: LocalJudge | None = None
        self._engine = Engine(
            config.model.dtype.name,
            config.judge.max_length,
            config.generation.tensor_parallel_size,
            config.generation.kv_cache_gib,
            config.generation.find_memory_share(config.cluster.placement),
            False,
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

    @ray.method(max_task_retries=0)  # the driver gives the shard to another engine
    def judge(self, job: JudgementsJob) -> dict[str, Any]:
        """Compare the samples of a shard; write one finished file of judgements."""
        for path in (job.prompts, job.samples):
            self._store.fetch(Path(path))
        if self._judge is None:
            self._judge = load_judge(job.config, job.judge)
        judge = self._judge
        facts = write_judgements(lambda questions: judge.ask(self._engine, job.judge, questions), job)
        self._store.publish(Path(job.out))
        return facts


@ray.remote(max_restarts=-1, max_task_retries=MAX_ATTEMPTS - 1)
class JudgeClient:
    """The client of an endpoint that judges; the only one of a run, since it keeps the replies."""

    def __init__(self, config: RunConfig, key: Secret, store: RunStore) -> None:
        """Read the replies of the run so far.

        Args:
            config: the run's config.
            key: of the endpoint; Ray passes it on in memory.
            store: the run directory, for samples, judgements and replies.
        """
        self._store = store
        self._replies_path = RunLayout(store.root).judge_replies
        # A local file is newer than the one at the URL: it is published once for each shard.
        if not self._replies_path.exists():
            store.fetch(self._replies_path)
        self._settings = config.judge
        self._key = key
        self._replies = ReplyFile(self._replies_path)

    @ray.method(max_task_retries=-1)
    def ping(self) -> None:
        """Return as soon as the actor is up: Ray repeats this call until then."""

    @ray.method(max_task_retries=0)
    def judge(self, job: JudgementsJob) -> dict[str, Any]:
        """Compare the samples of a shard; write one finished file of judgements."""
        for path in (job.prompts, job.samples):
            self._store.fetch(Path(path))
        judged = job.config.feedback.judged
        judge = EndpointJudge(self._settings, self._key, self._replies, judged.max_failures)
        facts = write_judgements(judge.ask, job)
        facts["judge"] |= judge.take_usage()
        self._store.publish(Path(job.out))
        self._store.publish(self._replies_path)
        return facts
