"""How long the stages of a run take: their work over the rate of the device times the share of it that is reached; on a resume, the run's own pace instead.

The shares are constants here. Nothing is known of the answers' lengths before there are some: they are taken to be the truths'.
"""

from __future__ import annotations

from dataclasses import dataclass

from spin.config.objective import SftObjective
from spin.config.run import RunConfig
from spin.config.training import TrainingConfig
from spin.preflight.devices import Device
from spin.preflight.footprint import RowCounts, Shape, generation_memory, value_bytes
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage

TRAINING_SHARE = {"gpu": 0.3, "cpu": 0.4}


GENERATION_SHARE = {"gpu": 0.3, "cpu": 0.1}
"""Of the device's plain rate, in large products and in token-by-token decoding. CPU: measured on the built-in model; GPU: a guess that no run has checked."""


STEP_SECONDS = {"gpu": 0.02, "cpu": 0.02}
"""What an optimizer step costs beside its products."""


ENGINE_BATCH = 256
"""Answers that an engine works on at once: vLLM's default."""


@dataclass
class StageTime:
    """Seconds that are left of one stage of the run."""

    label: str
    generation: float = 0.0
    scoring: float = 0.0
    training: float = 0.0
    benchmark: float = 0.0

    def total(self, overlapped: bool = False) -> float:
        """All of it; `overlapped`: training goes on beside generation and scoring."""
        return (max if overlapped else sum)((self.generation, self.scoring, self.training)) + self.benchmark


@dataclass
class Throughput:
    """How fast the run computes: estimated, or measured by itself."""

    shape: Shape
    config: RunConfig
    device: Device
    generation_rate: float | None = None
    """Measured: new tokens a second of all engines."""
    scoring_rate: float | None = None
    """Measured: pairs a second of all workers."""
    training_rate: float | None = None
    """Measured: tokens a second of all workers, a prompt counted with each of its completions."""
    answer_tokens: float | None = None
    """Measured: tokens of an answer."""
    benchmark_seconds: float | None = None

    @property
    def measured(self) -> bool:
        return self.generation_rate is not None or self.training_rate is not None

    def generation(self, answers: float, prompt: float, tokens: float) -> float:
        """Seconds of `answers` of `tokens` each on all engines.

        For the next token of the answers that it works on, an engine reads weights and cache once, or computes longer than that takes.
        """
        if self.generation_rate is not None:
            return answers * tokens / self.generation_rate
        device, shape, generation = self.device, self.shape, self.config.generation
        engines, parts = self._parallel(generation.replicas), generation.tensor_parallel_size
        _, _, room = generation_memory(shape, self.config, device)
        batch = max(
            1.0, min(ENGINE_BATCH, room, generation.shard_size * generation.samples_per_prompt, answers / engines)
        )
        read = value_bytes(self.config) * (shape.weights + batch * (prompt + tokens / 2) * shape.kv_values)
        step = (
            max(read / device.bandwidth, 2 * shape.weights * batch / device.flops)
            / parts
            / GENERATION_SHARE[device.kind]
        )
        first = (
            2 * shape.weights * prompt / device.flops / parts / TRAINING_SHARE[device.kind]
        )  # the prompt: large products, as in training
        return answers / engines * (tokens * step / batch + first)

    def scoring(self, pairs: float, tokens: float) -> float:
        """Seconds of a forward pass over pairs of `tokens` each, their prompt counted once."""
        return (
            pairs / self.scoring_rate
            if self.scoring_rate is not None
            else self.products(2, pairs * tokens, self.config.training.workers)
        )

    def training(self, rows: float, training: TrainingConfig, prompt: float, completions: float, halves: int) -> float:
        """Seconds of `training.epochs` passes over rows of a prompt and `halves` completions."""
        rows = rows * training.epochs
        if self.training_rate is not None:
            return rows * (halves * prompt + completions) / self.training_rate
        operations = 8 if training.gradient_checkpointing else 6
        return (
            self.products(operations, rows * (prompt + completions), training.workers)
            + STEP_SECONDS[self.device.kind] * rows / training.batch_size
        )

    def benchmark(self, held: RowCounts, answer: float) -> float:
        """Seconds of one policy's benchmark: two engines at most answer, one trainer scores, under the policy and under the start."""
        if self.benchmark_seconds is not None:
            return self.benchmark_seconds
        generation, samples = self.config.generation, self.config.benchmark.samples
        longest = samples if generation.replicas > 1 else samples + 1
        answered = self.generation(held.count * longest * self._parallel(generation.replicas), held.prompt, answer)
        return answered + self.products(2, held.count * (2 * held.prompt + (2 * samples + 2) * answer), 1)

    def products(self, operations: int, tokens: float, workers: int) -> float:
        """Seconds of so many operations a weight and token on the trainers."""
        threads = self._parallel(
            workers * self.config.cluster.trainer_threads if self.device.kind == "cpu" else workers
        )
        return (
            operations * self.shape.weights * tokens / (self.device.flops * TRAINING_SHARE[self.device.kind] * threads)
        )

    def _parallel(self, wanted: int) -> int:
        """Actors that compute at the same time."""
        return min(wanted, self.device.count)


def measured_pace(
    pace: Throughput, iteration_configs: list[RunConfig], layout: RunLayout, ledger: Ledger
) -> Throughput:
    """The same with what the run has measured of itself: the last finished iteration that did each."""
    for stage in (layout.start, *map(layout.iteration, range(len(iteration_configs)))):
        name = stage.name
        bench = ledger.get(f"{name}/benchmark")
        pace.benchmark_seconds = bench["seconds"] if bench else pace.benchmark_seconds
        if stage == layout.start:  # the warm-up is not like an iteration
            continue
        samples, pairs, policy = (ledger.get(f"{name}/{kind}") for kind in ("samples", "pairs", "policy"))
        if samples and samples["tokens"]:
            pace.generation_rate = samples["tokens"] / samples["seconds"]
            shards = ledger.family(f"{name}/samples/")
            pace.answer_tokens = sum(shard["tokens"] for shard in shards) / sum(shard["rows"] for shard in shards)
        if pairs and (shards := ledger.family(f"{name}/pairs/")) and pairs["seconds"]:
            pace.scoring_rate = sum(shard["rows"] for shard in shards) / pairs["seconds"]
        if policy and policy["tokens"]:
            pace.training_rate = policy["tokens"] / policy["seconds"]
    return pace


def stage_times(
    iteration_configs: list[RunConfig], rows: dict[str, RowCounts], layout: RunLayout, ledger: Ledger, pace: Throughput
) -> list[StageTime]:
    """Every stage of the run with what is left of it; nothing is taken to be dropped."""
    config, train, held = pace.config, rows["train"], rows["heldout"]
    answer = pace.answer_tokens or train.completion
    stages = []
    if config.warmup.enabled and "start/policy" not in ledger:
        warm = rows["warmup"]
        stages.append(
            StageTime(
                "start", training=pace.training(warm.count, config.warmup.training, warm.prompt, warm.completion, 1)
            )
        )
    elif config.benchmark.enabled and "start/benchmark" not in ledger:
        stages.append(StageTime("start"))
    steps_rows = []
    for index, iteration in enumerate(iteration_configs):
        stage, time = layout.iteration(index), StageTime(f"iteration {index}")
        pairs, both = float(train.count), train.completion
        if not isinstance(iteration.objective, SftObjective):
            own = train.count * iteration.generation.samples_per_prompt if iteration.feedback._target_ else 0
            earlier = min(
                iteration.replay, sum(iteration_configs[i].feedback._target_ is not None for i in range(index))
            )
            pairs, both = float(own * (1 + earlier)), train.completion + answer
            labelled = (
                [rows[name] for name in ("labelled-pairs", "ratings") if name in rows]
                if iteration.feedback.path
                else []
            )
            time.generation = pace.generation(own, train.prompt, answer) * _undone(
                ledger, stage, "samples", train.count / iteration.generation.shard_size
            )
            time.scoring = pace.scoring(pairs, train.prompt + both) * _undone(
                ledger, stage, "pairs", train.count / iteration.generation.shard_size
            )
            for extra in labelled:
                time.scoring += pace.scoring(extra.count, extra.prompt + extra.completion)
                time.training += pace.training(extra.count, iteration.training, extra.prompt, extra.completion, 2)
        steps_rows.append(pairs)
        time.training += pace.training(
            pairs, iteration.training, train.prompt, both, 1 if isinstance(iteration.objective, SftObjective) else 2
        )
        if f"{stage.name}/policy" in ledger:
            time = StageTime(time.label)
        stages.append(time)
    if config.baseline is not None:
        for index, iteration in enumerate(iteration_configs):
            undone = f"{layout.baseline(index).name}/policy" not in ledger
            seconds = (
                pace.training(steps_rows[index], iteration.training, train.prompt, train.completion, 1)
                if undone
                else 0.0
            )
            stages.append(StageTime(f"baseline {index}", training=seconds))
    for time in stages if config.benchmark.enabled else []:
        kind, _, number = time.label.partition(" ")
        where = (
            layout.start
            if kind == "start"
            else (layout.iteration if kind == "iteration" else layout.baseline)(int(number))
        )
        if f"{where.name}/benchmark" not in ledger:
            time.benchmark = pace.benchmark(held, answer)
    return stages


def _undone(ledger: Ledger, stage: Stage, kind: str, shards: float) -> float:
    """The share of a sharded unit that is still to be made."""
    return max(0.0, 1 - len(ledger.family(f"{stage.name}/{kind}/")) / max(1.0, shards))
