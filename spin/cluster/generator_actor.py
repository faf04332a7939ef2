"""The Ray actor around one vLLM engine; it stays up for the whole run.

Every call names the policy by path and digest, so that a restarted actor cannot use an older one.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import ray

from spin.cluster.memory import measure_peak_memory
from spin.cluster.recovery import MAX_ATTEMPTS
from spin.config.benchmark import LmEvalConfig
from spin.config.cluster import Placement
from spin.config.run import RunConfig
from spin.data.chat_renderer import Renderer
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt, Sample
from spin.feedback.judge_setup import max_engine_length
from spin.feedback.judgement_files import JudgementsJob, write_judgements
from spin.feedback.local_judge import LocalJudge
from spin.generation.adapter_requests import served_rank
from spin.generation.requests import MAX_CALLS, Sampling
from spin.models.policy import Policy
from spin.run_dir.store import RunStore

PROBE_TOKENS = 16
"""The most tokens of an answer to a probe."""


# One thread more than the driver's calls, for a ping or a question about memory.
@ray.remote(max_restarts=-1, max_task_retries=MAX_ATTEMPTS - 1, max_concurrency=MAX_CALLS + 1)
class Generator:
    """One vLLM engine, which answers the calls of several threads at once."""

    def __init__(self, config: RunConfig, renderer: Renderer, store: RunStore) -> None:
        """Start the engine, without a model.

        Args:
            config: the run's config.
            renderer: of the run, without its tokenizer, which comes from the policy.
            store: the run directory, from which policies and prompts come and to which samples go.
        """
        from spin.generation.engine import Engine

        generation = config.generation
        self._store = store
        self._config = config
        self._generation = generation
        self._seed = config.seed
        self._renderer = renderer
        self._engine = Engine(
            config.model.dtype.name,
            max_engine_length(config),
            generation.tensor_parallel_size,
            generation.kv_cache_gib,
            generation.find_memory_share(config.cluster.placement),
            config.model.trust_remote_code,
            config.cluster.placement is Placement.colocated,
            served_rank(config),
        )
        self._files = threading.Lock()
        """Lets one thread at a time fetch files."""
        self._renderers = threading.local()
        """The policy and the renderer of a thread: a tokenizer is not safe for two threads."""
        self._finished = 0.0
        """Time at which the last shard was finished, by `time.perf_counter`."""

    def release(self) -> None:
        """Free the device's memory until the next call that needs the engine."""
        self._engine.sleep()

    def load(self, policy: Policy) -> float:
        """Load a policy; returns the seconds it took."""
        start = time.perf_counter()
        self._fetch(policy)
        self._engine.load(policy)
        return time.perf_counter() - start

    def memory(self) -> dict[str, float]:
        """Return the peak memory of this actor in GiB."""
        return measure_peak_memory()

    @ray.method(max_task_retries=-1)
    def ping(self) -> None:
        """Return as soon as the actor is up: Ray repeats this call until then."""

    @ray.method(max_task_retries=0)  # the driver gives the shard to another engine
    def generate(
        self, policy: Policy, prompts_path: str, first: int, last: int, out: str, sampling: Sampling
    ) -> dict[str, Any]:
        """Answer prompts `first` to `last` - 1 of a prepared set; write one shard of samples."""
        from spin.generation.requests import Request
        from spin.generation.seeds import request_seed

        # Fetch what another machine may have written.
        start = time.perf_counter()
        self._fetch(policy)
        self._fetch_files(prompts_path)

        # Make one request for each sample of each prompt. Its seed does not depend on shards and
        # engines, so that their number changes no sample.
        prompts = read_rows(Path(prompts_path), Prompt, first, last)
        keys = [(prompt, index) for prompt in prompts for index in range(sampling.samples)]
        requests = []
        for prompt, index in keys:
            seed = request_seed(self._seed, sampling.purpose, sampling.iteration, prompt.prompt_id, index)
            requests.append(Request(prompt.prompt_ids, seed))
        answers = self._engine.generate(
            policy,
            requests,
            self._generation.max_tokens,
            sampling.temperature,
            sampling.top_p,
            self._renderer.stop_ids,
            with_logps=sampling.with_logps,
        )

        # Write the samples in the order of the requests.
        renderer = self._load_renderer(policy)
        samples = []
        for (prompt, index), answer in zip(keys, answers, strict=True):
            text = renderer.text(answer.token_ids)
            samples.append(Sample(prompt.prompt_id, index, answer.token_ids, answer.finish_reason, answer.logp, text))
        sha256 = write_rows(Path(out), Sample, samples)
        # The driver announces the shard, so it must be complete for everybody.
        self._store.publish(Path(out))
        return {
            "out": out,
            "sha256": sha256,
            "rows": len(samples),
            "tokens": sum(len(sample.completion_ids) for sample in samples),
            "cut": sum(sample.finish_reason == "length" for sample in samples),
            "seconds": self._take_seconds(start),
        }

    @ray.method(max_task_retries=0)
    def judge(self, job: JudgementsJob) -> dict[str, Any]:
        """Let the policy compare answers to the prompts of a shard; write one finished file."""
        start = time.perf_counter()
        self._fetch_files(job.prompts, job.samples)
        self._fetch(job.judge)
        judge = LocalJudge(self._load_renderer(job.judge), job.config.judge)
        facts = write_judgements(lambda questions: judge.ask(self._engine, job.judge, questions), job)
        self._store.publish(Path(job.out))
        facts["seconds"] = self._take_seconds(start)
        return facts

    @ray.method(max_task_retries=0)
    def lm_eval(self, policy: Policy, config: LmEvalConfig) -> dict[str, Any]:
        """Run tasks of lm-evaluation-harness: see `spin.benchmark.lm_eval`."""
        from spin.benchmark.lm_eval import evaluate
        from spin.generation.requests import Request

        self._fetch(policy)
        max_tokens = self._generation.max_tokens
        length = self._config.max_prompt_length + max_tokens
        renderer = self._load_renderer(policy)
        return evaluate(self._engine, Request, policy, renderer, max_tokens, length, config)

    @ray.method(max_task_retries=0)
    def probe(self, policy: Policy, prompts: list[list[int]]) -> list[tuple[list[int], float]]:
        """Return token ids and log-probability (nats) of a short answer to each prompt."""
        from spin.generation.requests import Request
        from spin.generation.seeds import request_seed

        self._fetch(policy)
        requests = [Request(ids, request_seed(self._seed, "probe", 0, number, 0)) for number, ids in enumerate(prompts)]
        max_tokens = min(PROBE_TOKENS, self._generation.max_tokens)
        answers = self._engine.generate(policy, requests, max_tokens, 1.0, 1.0, self._renderer.stop_ids)
        return [(answer.token_ids, answer.logp) for answer in answers]

    def _take_seconds(self, start: float) -> float:
        """Return the seconds of a finished shard: those since the shard that was finished before.

        Shards in flight share the time, and the sum of their seconds is the time that they took.
        """
        now = time.perf_counter()
        start, self._finished = max(start, self._finished), now
        return now - start

    def _fetch(self, policy: Policy) -> None:
        """Fetch the files of a policy that the engine is about to load."""
        if not self._engine.holds(policy):
            self._fetch_files(policy.path)

    def _fetch_files(self, *paths: str) -> None:
        """Fetch files or folders, one thread at a time: several may need the same."""
        with self._files:
            for path in paths:
                self._store.fetch(Path(path))

    def _load_renderer(self, policy: Policy) -> Renderer:
        """Return the run's renderer with the tokenizer of a policy, for this thread alone."""
        if getattr(self._renderers, "path", None) != policy.path:
            from transformers import AutoTokenizer

            trust = self._config.model.trust_remote_code
            tokenizer = AutoTokenizer.from_pretrained(policy.path, trust_remote_code=trust)
            self._renderers.renderer = self._renderer.with_tokenizer(tokenizer)
            self._renderers.path = policy.path
        return self._renderers.renderer
