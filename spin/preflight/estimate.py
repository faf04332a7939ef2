"""What a run will take, before it starts, in three lines: memory, time, disk. Estimates, with what they rest on; the disk decides whether the run may start."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from spin.config.groups import Placement
from spin.config.run import RunConfig
from spin.config.training import Sharding
from spin.errors import ConfigError
from spin.preflight.devices import Device, find_device
from spin.preflight.footprint import (
    Disk,
    Shape,
    disk_left,
    generation_memory,
    measure_rows,
    model_shape,
    size,
    training_memory,
)
from spin.preflight.pace import (
    GENERATION_SHARE,
    TRAINING_SHARE,
    StageTime,
    Throughput,
    measured_pace,
    stage_times,
)
from spin.report.console import format_duration
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout


def estimate(
    config: RunConfig,
    iteration_configs: list[RunConfig],
    layout: RunLayout,
    ledger: Ledger,
    model: Path,
    prepared: RunLayout,
) -> Estimate:
    """From a model folder and the sets that `prepared` holds; what `ledger` calls finished is left out."""
    from transformers import AutoConfig

    shape = model_shape(model, AutoConfig.from_pretrained(model, trust_remote_code=config.model.trust_remote_code))
    rows = measure_rows(prepared)
    device = find_device(config, shape.hidden, shape.inner)
    pace = measured_pace(Throughput(shape, config, device), iteration_configs, layout, ledger)
    stages = stage_times(iteration_configs, rows, layout, ledger, pace)
    there = next(folder for folder in (layout.root.absolute(), *layout.root.absolute().parents) if folder.exists())
    return Estimate(
        shape,
        config,
        device,
        disk_left(iteration_configs, shape, rows, layout, ledger),
        shutil.disk_usage(there).free,
        stages,
        pace.measured,
    )


@dataclass(frozen=True)
class Estimate:
    """What the run will take from here on."""

    shape: Shape
    config: RunConfig
    device: Device
    disk: Disk
    free: int
    """Bytes that the disk of the run directory has."""
    stages: list[StageTime]
    measured: bool

    def check_disk(self) -> None:
        """Raise ConfigError when what is still to be written does not fit."""
        if self.free < self.disk.total:
            saving = ", or save no trainer states (training.checkpoint_every=0)" if self.disk.states else ""
            raise ConfigError(
                f"run_dir={self.config.run_dir} has {size(self.free)} free, but {size(self.disk.total)} are to be written: {self.disk}; "
                f"free some or choose another disk{saving}"
            )

    def lines(self) -> list[str]:
        """For the person at the terminal: memory, time, disk, each with what it rests on."""
        return [
            self._memory(),
            self._time(),
            f"estimate, disk: {size(self.disk.total)} still to be written ({self.disk}); {size(self.free)} free",
        ]

    def _memory(self) -> str:
        config, training, device = self.config, self.config.training, self.device
        weights, cache, room = generation_memory(self.shape, config, device)
        full = training.sharding is Sharding.full
        needed, other = (training_memory(self.shape, config, training, sharded) for sharded in (full, not full))
        gpu = f"GPU of {size(device.memory)}{'' if device.known else ' (none is here, so assumed)'}"
        where = gpu if device.kind == "gpu" else f"process, of the {size(device.memory)} here"
        excess = ", MORE THAN THERE IS" if needed > device.memory else ""
        sharding = (
            f"; {size(other)} {'whole on each' if full else 'sharded over'} of {training.workers} workers"
            if training.workers > 1
            else ""
        )
        short = "" if room >= 1 else ", TOO LITTLE FOR ONE ANSWER"
        return (
            f"estimate, memory: {self.shape.weights / 1e6:,.1f} M weights; a {where}: generation {size(weights)} and {size(cache)} of cache "
            f"(room for {room:,} answers of full length{short}), training at least {size(needed)}{excess} "
            f"(float32 weights, gradients, {training.optimizer.name} moments, activations{sharding})"
        )

    def _time(self) -> str:
        kinds = ("generation", "scoring", "training", "benchmark")
        spent = {name: sum(getattr(stage, name) for stage in self.stages) for name in kinds}
        total = sum(stage.total(self.config.cluster.placement is Placement.split) for stage in self.stages)
        kind, rate = self.device.kind, f"{self.device.flops / 1e12:.3g} TFLOP/s"
        guessed = f"at {TRAINING_SHARE[kind]:.0%} of {rate} in training, {GENERATION_SHARE[kind]:.0%} of the possible in generation, answers as long as the truths"
        basis = "at the run's own pace where it has one" if self.measured else guessed
        parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in spent.items() if seconds)
        return f"estimate, time: {format_duration(total)} beside the start-up ({parts or 'nothing is left'}); {basis}, no pair dropped"
