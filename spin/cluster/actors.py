"""Ray actors that stay up for the whole run: thin wrappers over the engine and the trainer.

Every call names the policy by path and digest, so that an actor that Ray restarted cannot answer with an older one.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray

from spin.cluster.shard_queue import arriving
from spin.config.benchmark import LmEvalConfig
from spin.config.groups import Placement
from spin.config.run import RunConfig
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Example, Pair, Prompt, Rating, Sample, from_pair, from_prompt, from_rating
from spin.feedback.pairs import PairsJob
from spin.generation.engine import Sampling
from spin.models.loading import check_finite
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.run_dir.store import RunStore
from spin.training import reference
from spin.training.batches import RowStream
from spin.training.job import TrainingJob
from spin.training.reference import LabelledJob


def peak_memory() -> dict[str, float]:
    """High-water marks of this process in GiB: its resident memory, and what torch reserved on its GPU."""
    import torch

    peaks = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # KiB on Linux
    if torch.cuda.is_available():
        peaks["device_memory"] = torch.cuda.max_memory_reserved() / 2**30
    return {kind: round(value, 3) for kind, value in peaks.items()}


LIVES = 4
"""How often one call, or one stage without progress, may cost an actor its life before the run gives up."""


PROBE_TOKENS = 16


@ray.remote(max_restarts=-1, max_task_retries=LIVES - 1)
class Generator:
    """One vLLM engine."""

    def __init__(self, config: RunConfig, stop_ids: tuple[int, ...], store: RunStore) -> None:
        """`store`: the run directory, from which policies and prompts come and to which samples go."""
        from spin.generation.engine import Engine

        self._store = store
        generation = config.generation
        self._config, self._generation, self._seed, self._stop_ids = config, generation, config.seed, stop_ids
        self._engine = Engine(
            config.model.dtype.name,
            config.max_prompt_length + generation.max_tokens,
            generation.tensor_parallel_size,
            generation.kv_cache_gib,
            generation.gpu_memory_utilization,
            config.model.trust_remote_code,
            config.cluster.placement is Placement.colocated,
        )
        self._tokenizers: dict[str, Any] = {}

    def sleep(self) -> None:
        """Give back the device's memory until the next call that needs the engine."""
        self._engine.sleep()

    def load(self, policy: Policy) -> float:
        """Hold `policy`; returns the seconds it took."""
        start = time.perf_counter()
        self._fetch(policy)
        self._engine.load(policy)
        return time.perf_counter() - start

    def memory(self) -> dict[str, float]:
        """See `peak_memory`."""
        return peak_memory()

    @ray.method(max_task_retries=-1)  # waits for the actor to be back, however long that takes
    def ping(self) -> None:
        """Answer."""

    @ray.method(max_task_retries=0)  # the driver gives the shard to another engine
    def generate(
        self, policy: Policy, prompts_path: str, first: int, last: int, out: str, sampling: Sampling
    ) -> dict[str, Any]:
        """Answer prompts `first` to `last` - 1 of a prepared set into one finished shard."""
        from spin.generation.engine import Request, request_seed

        start = time.perf_counter()
        self._fetch(policy)
        self._store.fetch(Path(prompts_path))
        prompts = read_rows(Path(prompts_path), Prompt, first, last)
        keys = [(prompt, index) for prompt in prompts for index in range(sampling.samples)]
        requests = [
            Request(p.prompt_ids, request_seed(self._seed, sampling.purpose, sampling.iteration, p.prompt_id, i))
            for p, i in keys
        ]
        answers = self._engine.generate(
            policy, requests, self._generation.max_tokens, sampling.temperature, sampling.top_p, self._stop_ids
        )
        samples = [
            Sample(p.prompt_id, i, a.token_ids, a.finish_reason, a.logp, self._text(policy, a.token_ids))
            for (p, i), a in zip(keys, answers, strict=True)
        ]
        sha256 = write_rows(Path(out), Sample, samples)
        self._store.publish(Path(out))
        return {
            "out": out,
            "sha256": sha256,
            "rows": len(samples),
            "tokens": sum(len(s.completion_ids) for s in samples),
            "cut": sum(s.finish_reason == "length" for s in samples),
            "seconds": time.perf_counter() - start,
        }

    @ray.method(max_task_retries=0)
    def lm_eval(self, policy: Policy, config: LmEvalConfig) -> dict[str, Any]:
        """The tasks of lm-evaluation-harness: see `spin.benchmark.lm_eval`."""
        from spin.benchmark.lm_eval import evaluate
        from spin.generation.engine import Request

        self._fetch(policy)
        length = self._config.max_prompt_length + self._generation.max_tokens
        return evaluate(
            self._engine,
            Request,
            policy,
            self._tokenizer(policy),
            self._stop_ids,
            self._generation.max_tokens,
            length,
            config,
        )

    @ray.method(max_task_retries=0)
    def probe(self, policy: Policy, prompts: list[list[int]]) -> list[tuple[list[int], float]]:
        """A short answer to each prompt, with its log-probability: nothing is written."""
        from spin.generation.engine import Request, request_seed

        self._fetch(policy)
        requests = [Request(ids, request_seed(self._seed, "probe", 0, number, 0)) for number, ids in enumerate(prompts)]
        answers = self._engine.generate(
            policy, requests, min(PROBE_TOKENS, self._generation.max_tokens), 1.0, 1.0, self._stop_ids
        )
        return [(answer.token_ids, answer.logp) for answer in answers]

    def _fetch(self, policy: Policy) -> None:
        """Fetch the files of a policy that the engine is about to load."""
        if not self._engine.holds(policy):
            self._store.fetch(Path(policy.path))

    def _tokenizer(self, policy: Policy) -> Any:
        if policy.path not in self._tokenizers:
            from transformers import AutoTokenizer

            self._tokenizers = {policy.path: AutoTokenizer.from_pretrained(policy.path)}
        return self._tokenizers[policy.path]

    def _text(self, policy: Policy, token_ids: list[int]) -> str:
        return self._tokenizer(policy).decode(
            [i for i in token_ids if i not in self._stop_ids], skip_special_tokens=True
        )


@ray.remote(concurrency_groups={"watch": 2})
class TrainingWorker:
    """One rank of the trainer. While it trains, `watch` gets what it reports, and `save` asks for its state."""

    def __init__(self, config: RunConfig, rank: int, world: int, store: RunStore) -> None:
        """`store`: the run directory, from which inputs come and to which pairs, states and policies go."""
        self._store = store
        self._config, self._rank, self._world = config, rank, world
        os.environ["OMP_NUM_THREADS"] = str(config.cluster.trainer_threads)  # before torch is imported: Ray sets 1
        self._trainer: Any = None
        self._events: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def address(self) -> tuple[str, int]:
        """Where rank 0 listens for the others."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, address: tuple[str, int]) -> None:
        """Join the process group and import everything, before the first stage asks for it."""
        if self._world > 1:
            host, port = address
            # Each worker sees its own GPU only, and sees it as the first.
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

        self._trainer = Trainer(
            self._config.model.dtype, self._config.model.trust_remote_code, self._config.training.sharding, self._store
        )

    def set_budget(self, tokens: int) -> None:
        """The tokens of a forward pass, the same on all workers and in all sessions of a run, so that they round alike."""
        self._trainer.token_budget = tokens

    def find_budget(self, policy: Policy) -> int:
        """What fits into the free memory."""
        beside = (
            self._trainer.accelerator.device.type == "cuda"
            and self._config.cluster.placement is not Placement.colocated
        )
        shared = self._config.generation.gpu_memory_utilization if beside else 0.0
        self._store.fetch(Path(policy.path))
        return self._trainer.find_token_budget(
            policy, (1 - shared) / self._world, self._config.training.gradient_checkpointing
        )

    def memory(self) -> dict[str, float]:
        """See `peak_memory`."""
        return peak_memory()

    def check(self, policy: Policy) -> None:
        """Hold `policy` and see that it is whole: no key missing, no shape wrong, no weight that is not finite."""
        self._fetch(policy)
        self._trainer.load(policy, self._config.training)
        check_finite(self._trainer.model.named_parameters(), policy.path)

    def release(self) -> None:
        """Give back all memory that the next call can do without."""
        self._trainer.release()

    def score_pairs(self, job: PairsJob) -> dict[str, Any]:
        """Label and score one shard of samples into one finished shard of pairs."""
        for path in (job.samples, job.prompts, *(path for _, path in job.replayed)):
            self._store.fetch(Path(path))
        self._fetch(job.reference)
        facts = reference.score_pairs(self._trainer, job)
        self._store.publish(Path(job.out))
        return facts

    def score_labelled(self, job: LabelledJob) -> dict[str, Any]:
        """Score a set of labelled pairs or ratings."""
        self._store.fetch(Path(job.path))
        self._fetch(job.reference)
        facts = reference.score_labelled(self._trainer, job)
        self._store.publish(Path(job.out))
        return facts

    def logps(self, policy: Policy, groups: list[Group]) -> list[list[float]]:
        """Completion log-probabilities under a policy, group by group."""
        self._fetch(policy)
        return self._trainer.score(policy, groups, self._config.training)

    def _fetch(self, policy: Policy) -> None:
        """Fetch the files of a policy that the trainer is about to load."""
        if not self._trainer.holds(policy):
            self._store.fetch(Path(policy.path))

    def train(self, job: TrainingJob) -> dict[str, Any] | None:
        """Train on finished shards. Rank 0 reports each step's metrics and seconds, exports the outcome and returns its digest."""
        from transformers import AutoTokenizer

        from spin.models.loading import export_policy

        try:
            rows = rows_of(job, self._store)
            if job.queue is None:
                rows.all()
            self._fetch(job.reference)
            self._fetch(job.policy)
            before = time.perf_counter()
            for event in self._trainer.train(
                job.policy,
                job.reference,
                rows,
                job.objective,
                job.training,
                self._config.seed,
                job.iteration,
                Path(job.states),
                job.resume_step,
                job.steps,
            ):
                before, seconds = time.perf_counter(), time.perf_counter() - before
                if self._rank == 0:
                    self._events.put({**event, "seconds": seconds})
            state = self._trainer.gathered()
            if self._rank != 0:
                return None
            tokenizer = AutoTokenizer.from_pretrained(job.policy.path)
            digest = export_policy(self._trainer.model, tokenizer, Path(job.out), self._config.model.dtype.name, state)
            self._store.publish(Path(job.out))
            return {
                "digest": digest,
                "note": self._trainer.note,
                "steps": job.steps or rows.steps(job.training.batch_size) * job.training.epochs,
            }
        finally:
            self._events.put(None)

    @ray.method(concurrency_group="watch")
    def watch(self) -> list[dict[str, Any] | None]:
        """What `train` has reported since the last call, in order, and None once it has ended. Waits for the first of it."""
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        return events

    @ray.method(concurrency_group="watch")
    def save(self) -> None:
        """Let `train` save its state after the current step."""
        self._trainer.asked.set()


def rows_of(job: TrainingJob, store: RunStore) -> RowStream:
    """The rows of a stage: a chunk for each shard of pairs, with an even part of every other set; the other sets alone, where there is no shard."""
    make: dict[type, Callable[[Any], Example]] = {Prompt: from_prompt, Pair: from_pair, Rating: from_rating}
    others: list[list[Example]] = []
    for kind, path in job.others:
        store.fetch(Path(path))
        others.append(list(map(make[kind], read_rows(Path(path), kind))))
    count = max(1, len(job.pairs))
    parts = [
        [example for rows in others for example in rows[len(rows) * part // count : len(rows) * (part + 1) // count]]
        for part in range(count)
    ]
    if not job.pairs:
        return RowStream.whole(parts[0])
    arrived = arriving(job.queue, [Path(path) for path in job.pairs])

    def read_pairs(path: Path) -> list[Example]:
        store.fetch(path)
        return [from_pair(row) for row in read_rows(path, Pair)]

    chunks = (read_pairs(path) + part for path, part in zip(arrived, parts, strict=True))
    return RowStream(chunks, [size + len(part) for size, part in zip(job.sizes, parts, strict=True)])
