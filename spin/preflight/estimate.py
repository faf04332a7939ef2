"""Estimate what a run takes before it starts: memory, time and disk. Only the disk refuses a run.

Work is counted in tokens of the units that are left. A token costs two operations per weight in a
forward pass, at the rate of the device; once units of a kind are finished, their own rate counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from spin.config.cluster import Placement
from spin.config.objective_base import Need
from spin.config.policy_gradient import has_own_critic
from spin.config.run import RunConfig
from spin.config.training import Dtype, Sharding, TrainingConfig
from spin.data.records import Pair
from spin.feedback.row_builders import make_row_builder
from spin.models.model_size import VALUE_BYTES, ModelShape, training_bytes
from spin.preflight.decode_speed import decode_flops
from spin.preflight.disk_space import MOMENTS, check_disk_space, find_sizes, list_disk_parts
from spin.preflight.hardware import Device
from spin.preflight.memory import describe_memory
from spin.preflight.operations import BACKWARD, COMPLETIONS, FORWARD, WORK, count_operations, count_rewards
from spin.preflight.set_sizes import measure_ranked
from spin.preflight.speed_probe import UNCERTAINTY, SpeedProbe
from spin.report.formatting import format_bytes, format_duration
from spin.run_dir.facts import FileFacts, PolicyFacts
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import RunState
from spin.run_dir.stage_work import generates_samples
from spin.run_dir.unit import LABELLED_KINDS, TRAINED_KINDS, Unit
from spin.wording import count_of


@dataclass(frozen=True)
class Estimate:
    """The work that is left, if no pair is dropped and answers are as long as the targets."""

    config: RunConfig
    iteration_configs: list[RunConfig]
    state: RunState
    set_rows: dict[str, int]
    """Rows of each prepared set."""
    set_tokens: dict[str, int]
    """Tokens of each prepared set; a prompt counts once for each of its completions."""
    weights: int
    """Number of weights of the model."""
    device: Device
    free: int
    """Free bytes on the disk of the run directory."""
    adapter_weights: int = 0
    """Number of values in A and B of the adapter; 0 without adapters."""
    reward_weights: int = 0
    """Trained values of a reward model with an adapter, with its head; 0: none has one."""
    shape: ModelShape = ModelShape()
    """Other sizes of the model."""
    other_engines: dict[str, int] = field(default_factory=dict)
    """Numbers of weights of a judge and of a reward model that have engines of their own."""
    probe: SpeedProbe | None = None
    """The speed that was measured on this machine; None: rates of `device`."""

    def training(self, unit: Unit) -> TrainingConfig:
        """Return the training settings of a policy or a reward model."""
        if unit.kind == "reward_model":
            return self.config.reward_model.training
        if unit.stage.index < 0:
            return self.config.warmup.training
        return self.iteration_configs[unit.stage.index].training

    def tokens(self, unit: Unit) -> float:
        """Return the tokens of a unit's work; a prompt counts once for each of its completions."""
        if unit.shard is not None:
            config = self.iteration_configs[unit.stage.index]
            count = config.generation.samples_per_prompt
            if unit.kind == "pairs":
                completions = COMPLETIONS[make_row_builder(config.feedback).row_type]
                if unit.stage.index > 0 and Need.start_answers in config.objective.needs:
                    completions += 1
                count = completions * self._rows_per_prompt(unit)
            return len(unit.prompts) * count * self.set_tokens["train"] / max(1, self.set_rows["train"])
        if unit.kind in LABELLED_KINDS:
            return self.set_tokens[unit.kind]
        if unit.kind == "reward_model":
            num_rows, num_tokens = measure_ranked(self.state, unit, self.set_rows, self.set_tokens, self.tokens)
            return self._count_passes(unit, num_rows) * num_tokens
        if unit.kind == "evaluation":
            return self.set_tokens.get("rankings-heldout", 0)
        if unit.kind == "benchmark":  # generated, then scored under the policy and under the start
            return 3 * (1 + self.config.benchmark.samples) * self.set_tokens["heldout"]
        if unit.stage.index < 0:
            return self._count_passes(unit, self.set_rows["warmup"]) * self.set_tokens["warmup"]
        # A baseline takes the steps of its iteration, and each of its rows has one completion.
        iteration = RunLayout(unit.stage.root).iteration(unit.stage.index)
        sources = [source for kind in TRAINED_KINDS for source in self.state.units(iteration, kind)]
        tokens = sum(self.tokens(source) for source in sources) or self.set_tokens["train"]
        num_rows = sum(self._count_rows(source) for source in sources) or self.set_rows["train"]
        if unit.stage.is_baseline:
            tokens /= self._count_completions(self.iteration_configs[unit.stage.index])
        return self._count_passes(unit, num_rows) * tokens

    def _rows_per_prompt(self, unit: Unit) -> int:
        """Return the rows that a shard of pairs has for each prompt, those of replays included."""
        config = self.iteration_configs[unit.stage.index]
        own = make_row_builder(config.feedback).count_rows(config.generation.samples_per_prompt)
        return own * (1 + len(self.state.sources(unit, "pairs")))

    def _count_rows(self, unit: Unit) -> int:
        """Return the number of rows of a unit that is trained on."""
        if unit.kind in LABELLED_KINDS:
            return self.set_rows[unit.kind]
        return len(unit.prompts) * self._rows_per_prompt(unit)

    def _count_passes(self, unit: Unit, num_rows: int) -> float:
        """Return how often the training of a policy passes over its rows."""
        training = self.training(unit)
        if training.steps is None:
            return training.epochs
        return training.steps * training.batch_size / max(1, num_rows)

    def _count_completions(self, config: RunConfig) -> int:
        """Return the number of completions of a row that an iteration trains on."""
        if generates_samples(config):
            return COMPLETIONS[make_row_builder(config.feedback).row_type]
        # Without samples, a pair is a labelled one.
        if config.feedback.path is not None and "labelled-pairs" in self.set_rows:
            return COMPLETIONS[Pair]
        return 1

    @cached_property
    def measured_rates(self) -> dict[str, float]:
        """Tokens per second of all workers by kind, in the last stage with finished units."""
        rates: dict[str, float] = {}
        # Those of other machines tell nothing about GPUs that are not here.
        if self.config.cluster.assume is not None:
            return rates
        # The seconds of a shard are those of one worker; the other kinds take all of them.
        workers = dict.fromkeys(("rewards", "pairs"), self.config.training.workers)
        workers["samples"] = self.config.generation.replicas
        for kind in ("samples", "rewards", "judgements", "pairs", "policy", "benchmark"):
            for stage in self.state.stages(kind):
                units = [unit for unit in self.state.units(stage, kind) if self.state.done(unit)]
                seconds = sum(self.state.facts(unit, FileFacts).seconds for unit in units)
                tokens = sum(self.tokens(unit) for unit in units)
                # Seconds and tokens of training are both counted from the last resume.
                if kind == "policy":
                    tokens = self.state.facts(units[0], PolicyFacts).tokens
                if tokens and seconds:
                    rates[kind] = workers.get(kind, 1) * tokens / seconds
        return rates

    def unit_seconds(self, unit: Unit) -> float:
        """Return the seconds of a unit on all workers of its kind."""
        # The run's own rate, once there is one. Labelled sets are scored as pairs are.
        kind = unit.kind
        if kind in LABELLED_KINDS:
            kind = "pairs"
        measured = self.measured_rates.get(kind)
        if measured is not None:
            return self.tokens(unit) / measured
        # Nothing is known about a reward source or a judge before its first shard.
        if unit.kind in ("rewards", "judgements"):
            return 0.0

        # The devices that share the work: trainers, or engines.
        devices = self.config.training.workers
        if self.device.name == "CPU" and self.probe is None:
            devices *= self.config.cluster.trainer_threads
        if unit.kind == "samples":
            devices = self.config.generation.replicas * self.config.generation.tensor_parallel_size
        devices = min(devices, self.device.count)

        operations = count_operations(unit, self.iteration_configs, self.training(unit).gradient_checkpointing)
        return operations * self.weights * self.tokens(unit) / (self.find_flops(WORK[unit.kind]) * devices)

    def find_flops(self, work: str) -> float:
        """Return the FLOP/s that one device reaches in a kind of work."""
        if self.probe is not None:
            return self.probe.find_flops(work)
        if work not in ("generate", "benchmark") or not self.device.bandwidth:
            return self.device.flops
        parallel = self.config.generation.tensor_parallel_size
        length = self.set_tokens["train"] / max(1, self.set_rows["train"])
        sequence_bytes = VALUE_BYTES[self.config.model.dtype] * self.shape.cache_values * length / parallel
        reached = decode_flops(self.device, self.weights / parallel, self.engine_memory(), sequence_bytes)
        if work == "benchmark":  # one token generated, two scored
            reached = 3 / (1 / reached + 2 / self.device.flops)
        return reached

    def find_mfu(self, work: str) -> float:
        """Return the share of a GPU's peak that a kind of work reaches, without repeated passes."""
        share = self.find_flops(work) / self.device.peak
        if work == "train" and self.config.training.gradient_checkpointing:
            share *= (FORWARD + BACKWARD) / (2 * FORWARD + BACKWARD)
        return share

    @cached_property
    def seconds(self) -> dict[str, dict[str, float]]:
        """Seconds that are left, by label of the stage and by work."""
        stages: dict[str, dict[str, float]] = {}
        for unit in self.state.todo():
            if unit.kind in WORK:
                stage = stages.setdefault(unit.stage.label, dict.fromkeys(WORK.values(), 0.0))
                stage[WORK[unit.kind]] += self.unit_seconds(unit)
        return stages

    def engine_memory(self) -> tuple[float, float]:
        """Return the bytes of weights and of key-value cache that an engine has on one device."""
        generation = self.config.generation
        weights = VALUE_BYTES[self.config.model.dtype] * self.weights / generation.tensor_parallel_size
        if self.device.name == "CPU":
            return weights, generation.kv_cache_gib * 2**30
        share = generation.find_memory_share(self.config.cluster.placement)
        return weights, max(0.0, share * self.device.memory - weights)

    def training_memory(self) -> float:
        """Return the bytes of weights, gradients and moments of one training worker."""
        training = self.config.training
        parts = 1
        if training.sharding is Sharding.full:
            parts = training.workers
        moments = MOMENTS[training.optimizer]
        held = training_bytes(self.weights, self.most_trained, self.config.adapter.base_dtype, moments, parts)
        return held + training_bytes(self._critic_weights, 0, Dtype.float32, moments, parts)

    @property
    def _critic_weights(self) -> int:
        """Number of weights of a critic that is a model of its own; 0 without one."""
        return self.weights * any(has_own_critic(config.objective) for config in self.iteration_configs)

    @property
    def most_trained(self) -> int:
        """Return the most values that a stage trains beside frozen weights; 0 without adapters."""
        return max(self.adapter_weights, self.reward_weights)

    @cached_property
    def disk(self) -> dict[str, int]:
        """Bytes that are still to be written, at most, by their description."""
        sizes = find_sizes(self.config.adapter, self.weights, self.adapter_weights, self.reward_weights)
        sizes = sizes.with_critic(self._critic_weights)
        return list_disk_parts(self.state, sizes, self.tokens, self.training, self.config.keep.policies)

    def check_disk(self) -> None:
        """Raise ConfigError when what is still to be written does not fit."""
        check_disk_space(self.config.run_dir, self.disk, self.free)

    def lines(self) -> list[str]:
        """Return one line each on memory, time and disk."""
        # Time: with placement=split, an iteration takes as long as its longest work.
        total = 0.0
        spent = dict.fromkeys(WORK.values(), 0.0)
        for stage in self.seconds.values():
            parts = (stage["generate"], stage["reward"] + stage["judge"] + stage["score"], stage["train"])
            if self.config.cluster.placement is Placement.split:
                total += max(parts)
            else:
                total += sum(parts)
            total += stage["benchmark"]
            for work, seconds in stage.items():
                spent[work] += seconds
        times = [f"{work} {format_duration(seconds)}" for work, seconds in spent.items() if seconds]
        # What the times are based on.
        basis = f"at {self.device.flops / 1e12:.3g} TFLOP/s per device"
        if self.device.bandwidth:
            basis += f", {self.find_flops('generate') / 1e12:.3g} when it generates"
        between = ""
        if self.probe is not None:
            basis = "at the speed of this machine, measured just now"
            between = f" ({format_duration(total / UNCERTAINTY)} to {format_duration(total * UNCERTAINTY)})"
        if self.measured_rates:
            basis = "at the rate measured in this run where there is one"
        num_rewards = count_rewards(self.state.todo(), self.iteration_configs)
        if num_rewards and "rewards" not in self.measured_rates:
            basis += f", without the {num_rewards:,} rewards, whose rate is not known yet"
        num_judged = sum(unit.kind == "judgements" for unit in self.state.todo())
        if num_judged and "judgements" not in self.measured_rates:
            basis += f", without the judge of {count_of(num_judged, 'shard')}, whose rate is not known yet"
        sizes, others = (self.weights, self.most_trained, self.shape), self.other_engines
        memory = describe_memory(self.config, self.device, self.engine_memory(), self.training_memory(), sizes, others)
        return [
            memory,
            f"estimate, time: {format_duration(total)}{between} besides the start-up "
            f"({', '.join(times) or 'nothing is left'}); {basis}, answers as long as the targets, no pair dropped",
            f"estimate, disk: {format_bytes(sum(self.disk.values()))} still to be written "
            f"({', '.join(self.disk) or 'nothing is left'}); {format_bytes(self.free)} free",
        ]
