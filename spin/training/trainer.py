"""One training stage: batch → log-probabilities → objective → step, on however many workers accelerate was started with.

Not here: which rows and in what order (`examples.py`), how log-probabilities are computed (`forward.py`), what a row costs (`criterion.py`).
"""

from __future__ import annotations

import gc
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from spin.config.objective import ObjectiveConfig
from spin.config.training import Dtype, Layout, Sharding, TrainingConfig
from spin.data.records import Example
from spin.errors import OutOfMemory, TrainingError
from spin.models.forward import GroupLogps, keep_freed_memory, limit_kernel_caches
from spin.models.loading import load_policy
from spin.models.packing import CPU_TOKEN_CAP, Group, auto_token_budget, free_memory, micro_batches
from spin.models.policy import Policy, check_policy
from spin.objectives.objective import Objective, StepBatch, check_step0
from spin.run_dir.store import LOCAL_STORE, RunStore
from spin.training.batches import RowStream, batches, group_by_prompt, mismatched
from spin.training.checkpoint import Saver
from spin.training.optimizer import make_optimizer, make_schedule
from spin.training.sharding import copies_of_weights, full_state, make_accelerator, prepare, whole


class Trainer:
    """Holds one model at a time: the reference while it scores, then the main player while it is trained."""

    def __init__(
        self,
        dtype: Dtype,
        trust_remote_code: bool = False,
        sharding: Sharding = Sharding.none,
        store: RunStore = LOCAL_STORE,
    ) -> None:
        """`store`: where saved states go."""
        self.accelerator, self._sharding = make_accelerator(sharding), sharding
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
            limit_kernel_caches()
        self.dtype = dtype
        self._store = store
        self._trust_remote_code = trust_remote_code
        self._digest: str | None = None
        self._settled: str | None = None
        self.scorer: Any = None
        self.note: str | None = None
        """What `layout: auto` fell back to, and why."""
        self.token_budget = CPU_TOKEN_CAP
        """Tokens of a forward pass where `training.micro_batch_tokens` does not say."""
        self.asked = threading.Event()
        """Set by whoever wants the state saved after the current step."""

    @property
    def model(self) -> Any:
        """The Hugging Face model that is held."""
        return self.scorer.model

    def find_token_budget(self, policy: Policy, memory_share: float = 1.0, checkpointing: bool = False) -> int:
        """Set and return `token_budget` from the memory that is left of `memory_share` of it when weights, gradients and optimizer are in place.

        `checkpointing`: `training.gradient_checkpointing`, with which a token takes less.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(policy.path, trust_remote_code=self._trust_remote_code).get_text_config()
        weights = sum(file.stat().st_size for file in Path(policy.path).glob("*.safetensors"))
        held = int(weights * copies_of_weights(self._sharding, self.accelerator.num_processes))
        free = int(memory_share * free_memory(self.accelerator.device)) - held
        self.token_budget = auto_token_budget(
            config, self.accelerator.device, 4 if self.dtype is Dtype.float32 else 2, max(0, free), checkpointing
        )
        return self.token_budget

    def holds(self, policy: Policy) -> bool:
        """Return whether the weights of `policy` are loaded."""
        return self._digest == policy.digest

    def load(self, policy: Policy, training: TrainingConfig) -> None:
        """Hold the weights of `policy`, unless they are held already. Raises CheckpointError when the files were altered."""
        if self._digest != policy.digest:
            check_policy(policy)
            self.scorer, self._digest = None, None  # never two models in memory
            model = load_policy(Path(policy.path), self._trust_remote_code).to(self.accelerator.device)
            self._digest = policy.digest
        else:
            model = self.model
        layout = self._settled if training.layout is Layout.auto and self._settled else training.layout.name
        self.scorer = GroupLogps(
            model, self.dtype, layout, training.gradient_checkpointing, self._sharding is Sharding.full
        )

    def release(self) -> None:
        """Hold no model, and give its memory back to the device."""
        self.scorer, self._digest = None, None
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def _settle(self, training: TrainingConfig, groups: Sequence[Group]) -> None:
        """Let `layout: auto` choose, once, on the longest and the shortest of real groups."""
        if training.layout is Layout.auto and self._settled is None:
            by_length = sorted(groups, key=lambda group: group.longest)
            self.note = self.scorer.choose([by_length[-1], by_length[0]])
            self._settled = self.scorer.layout

    @torch.no_grad()
    def score(self, policy: Policy, groups: Sequence[Group], training: TrainingConfig) -> list[list[float]]:
        """Log-probabilities under `policy`: for each group, those of its completions. Nothing collective: each worker scores what it is given."""
        self.load(policy, training)
        scores: list[list[float]] = [[] for _ in groups]
        if groups:
            self._settle(training, groups)
        with self.scorer.weights_kept():
            for chosen in micro_batches(groups, training.micro_batch_tokens or self.token_budget, self.scorer.layout):
                with memory_named([groups[index] for index in chosen]):
                    flat = iter(self.scorer([groups[index] for index in chosen]).tolist())
                for index in chosen:
                    scores[index] = [next(flat) for _ in groups[index].completions]
        return scores

    def train(
        self,
        policy: Policy,
        reference: Policy,
        rows: RowStream,
        objective: ObjectiveConfig,
        training: TrainingConfig,
        seed: int,
        iteration: int,
        states: Path | None = None,
        resume_step: int = 0,
        steps: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Train from `policy`; yields the metrics of each optimizer step. `self.model` holds the outcome.

        With `states`, ``states/step-000100`` and so on are written as `training.checkpoint_every` says; `resume_step` goes on from one of these.
        A step after which the state was saved carries its digest (``saved``), after the folder is whole, and from how many chunks its rows were (``chunks``).
        `steps`: how many optimizer steps to take, instead of `training.epochs`.

        Raises TrainingError when the first step's log-probabilities are not the reference's though it is the reference, or a loss or gradient is not finite.
        """
        criterion = Objective(objective)
        others = self._mismatched(rows.all(), reference, training) if criterion.z == "mismatched" else None
        self.load(policy, training)
        self._settle(training, group_by_prompt(rows.some()[:64])[0])
        self._digest = None  # from here on the weights are nobody's
        optimizer = make_optimizer(self.model, training)
        rate_at = make_schedule(
            optimizer, training, steps or math.ceil(sum(rows.sizes) / training.batch_size) * training.epochs
        )
        model, optimizer = prepare(self.accelerator, self.scorer, optimizer)
        saver = None
        if states is not None:
            saver = Saver(self.accelerator, states, training, self.asked.is_set, store=self._store)
        if resume_step:
            assert saver is not None
            saver.load(resume_step)
        chosen = batches(rows, seed, iteration, None if steps else training.epochs, training.batch_size)
        for step, (indices, place) in enumerate(itertools.islice(chosen, steps), start=1):
            if step <= resume_step:
                continue
            batch = StepBatch([rows.examples[i] for i in indices], criterion)
            if others is not None:
                batch.others = [others[i] for i in indices]
            for group in optimizer.param_groups:
                group["lr"] = rate_at(place)
            metrics = self._step(
                model, optimizer, batch, training, check_start=step == 1 and reference.digest == policy.digest
            )
            total = steps or rows.steps(training.batch_size) * training.epochs
            saved = (
                {"saved": saver.save(step), "chunks": len(rows.taken)}
                if saver is not None and step < total and saver.due(step)
                else {}
            )
            yield {"step": step, "steps": total, "learning_rate": rate_at(place), **metrics, **saved}
        self.scorer = self.accelerator.unwrap_model(model)
        self.note = self.scorer.note or self.note
        self.accelerator.free_memory()

    def gathered(self) -> dict[str, Tensor] | None:
        """What `train` made of the weights, where the workers share them: whole on rank 0, nothing on the others. Collective. None where `model` has them whole."""
        return full_state(self.model) if self.accelerator.is_fsdp2 else None

    def _mismatched(self, examples: Sequence[Example], reference: Policy, training: TrainingConfig) -> list[Example]:
        """Each example's prompt under another one's completions, scored by the reference; the workers share the scoring."""
        others = mismatched(examples)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = range(rank, len(others), world)
        groups = [
            Group(others[i].prompt_ids, [half.ids for half in others[i].completions])
            for i in mine
            if others[i].completions
        ]
        scores = self.score(reference, groups, training)
        scored = dict(zip((i for i in mine if others[i].completions), scores, strict=True))
        for part in gather_object([scored]) if world > 1 else []:
            scored |= part
        return [other.with_reference(scored[i]) if other.completions else other for i, other in enumerate(others)]

    def _passes(
        self, rows: Sequence[Example], budget: int
    ) -> list[tuple[list[Group], list[tuple[Example, tuple[int, ...]]]]]:
        """This worker's forward passes over `rows`: groups, and each example with the flat places of its halves. As many on every worker: the last are empty."""
        groups, places = group_by_prompt(rows)
        passes: list[tuple[list[Group], list[tuple[Example, tuple[int, ...]]]]] = []
        for chosen in micro_batches(groups, budget, self.scorer.layout):
            starts, flat = {}, 0
            for group in chosen:
                starts[group] = flat
                flat += len(groups[group].completions)
            members = [
                (row, tuple(starts[group] + at for at in ats))
                for row, (group, ats) in zip(rows, places, strict=True)
                if group in starts
            ]
            passes.append(([groups[group] for group in chosen], members))
        if self.accelerator.num_processes > 1:
            count = int(self.accelerator.gather(torch.tensor([len(passes)], device=self.accelerator.device)).max())
            passes += [([], [])] * (count - len(passes))
        return passes

    def _share(self, rows: Sequence[Example]) -> Sequence[Example]:
        """This worker's part of a batch: neighbours, since they may share a prompt."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]

    @torch.no_grad()
    def _ratios(self, model: Any, rows: Sequence[Example], filler: Group, budget: int) -> Tensor:
        """max(0, mean log-ratio) over all workers: of the desirable halves, of the others, of all. Shape (3,), float64."""
        sums = torch.zeros(
            2, 2, dtype=torch.float64, device=self.accelerator.device
        )  # [desirable or not, sum and count]
        for groups, members in self._passes(self._share(rows), budget):
            with memory_named(groups):
                logps = model(groups or [filler])
            for row, places in members:
                for half, place in zip(row.completions, places, strict=True):
                    sums[int(not half.desirable)] += torch.stack(
                        [logps[place] - half.reference_logp, logps.new_ones(())]
                    )
        sums = self.accelerator.reduce(sums, "sum")
        sums = torch.cat([sums, sums.sum(0, keepdim=True)])
        return (sums[:, 0] / sums[:, 1].clamp(min=1)).clamp(min=0)

    def _step(
        self, model: Any, optimizer: Any, batch: StepBatch, training: TrainingConfig, check_start: bool
    ) -> dict[str, float]:
        """One optimizer step over the whole batch; every worker takes its share of the rows."""
        world, budget = self.accelerator.num_processes, training.micro_batch_tokens or self.token_budget
        filler = group_by_prompt(batch.examples[:1])[0][
            0
        ]  # a worker without rows still takes part in every exchange, with weight 0
        z = None
        if batch.criterion.z is not None:
            rows = (
                [other for other in batch.others if other.completions]
                if batch.criterion.z == "mismatched"
                else batch.examples
            )
            ratios = self._ratios(model, rows, filler, budget)
            z = ratios[2] if batch.criterion.z == "mismatched" else ratios[:2]
        sums = torch.zeros(len(StepBatch.LOGGED), dtype=torch.float64, device=self.accelerator.device)
        passes = self._passes(self._share(batch.examples), budget)
        with self.scorer.weights_kept():
            for number, (groups, members) in enumerate(passes):
                exchanged = (
                    number == len(passes) - 1 or self.accelerator.is_fsdp2
                )  # whole copies at the last pass only; parts are never added up whole
                with memory_named(groups), nullcontext() if exchanged else self.accelerator.no_sync(model):
                    logps = model(groups or [filler])
                    if members:
                        if check_start:
                            check_step0(logps.detach(), members, self.dtype, batch.criterion)
                        loss, logged = batch.losses(logps, members, z)
                        sums += logged
                    else:
                        loss = 0.0 * logps.sum()
                    if not bool(torch.isfinite(loss)):
                        bad = [
                            row.name for row, places in members if not bool(torch.isfinite(logps[list(places)]).all())
                        ] or [row.name for row, _ in members]
                        raise TrainingError(
                            f"the loss of {', '.join(bad[:5])} is not finite; lower training.learning_rate, or look at these rows"
                        )
                    self.accelerator.backward(loss * world)  # the exchange divides by the world size
        sums = self.accelerator.reduce(sums, "sum")
        norm = float(whole(self.accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm)))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite in a batch of {', '.join(e.name for e in batch.examples[:5])}, …; lower training.learning_rate"
            )
        optimizer.step()
        optimizer.zero_grad()
        return {**batch.metrics(sums, z), "grad_norm": norm}


@contextmanager
def memory_named(groups: Sequence[Group]) -> Iterator[None]:
    """Turn every way in which torch says that memory is out into OutOfMemory, with the size of the pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        tokens = sum(len(group.prompt_ids) + sum(map(len, group.completions)) for group in groups)
        raise OutOfMemory(f"a pass of {tokens:,} tokens does not fit into memory") from error
