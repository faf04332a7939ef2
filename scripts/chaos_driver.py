"""The driver processes that `scripts/chaos.py` starts and kills, and the settings of their runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

VICTIMS = {
    "driver": "",
    "generator": "ray::Generator",
    "trainer": "ray::TrainingWorker",
    "raylet": "raylet",
    "gcs": "gcs_server",
}
"""Beginning of each victim's process title."""
SMALL = [
    "experiment=quickstart",
    "iterations=2",
    "baseline=null",
    "data.limit=96",
    "data.eval_limit=20",
    "warmup.limit=320",
    "warmup.training.epochs=1",
    "generation.shard_size=32",
]
"""A run of under a minute."""
OFTEN = ["training.batch_size=8", "training.checkpoint_every=2", "warmup.training.checkpoint_every=2"]
"""Settings for more steps and more saved states, so that kills hit more different moments."""
REWARD = [
    "warmup.enabled=false",
    "reward_model.data_path=builtin:letters-ranked",
    "reward_model.limit=480",
    "reward_model.eval_path=builtin:letters-ranked",
    "reward_model.eval_limit=100",
    "reward_model.training.batch_size=8",
    "reward_model.training.learning_rate=1e-3",
    "reward_model.training.max_length=96",
    "reward_model.training.checkpoint_every=2",
]
"""A reward model that is trained in 60 steps."""
MANY_ITERATIONS = [
    "iterations=20",
    "feedback=verifier",
    "feedback.rows=rollouts",
    "feedback.rewards=[{_target_: spin.data.builtin.is_sorted}]",
    "generation.samples_per_prompt=4",
    "generation.prompts_per_iteration=32",
    "generation.shard_size=16",
    "training.batch_size=32",
    "benchmark.every=10",
    "keep.policies=2",
]
"""Small iterations that learn from rewards."""
PPO = ["objective=ppo", "objective.ptx_weight=0.1", "objective.ptx_rows=8", *MANY_ITERATIONS]
"""PPO with a critic of its own and ground truths beside the rewards."""
RUNS = {
    "quickstart": [],
    "grpo": ["objective=grpo", *MANY_ITERATIONS],
    "ppo": PPO,
    "ppo_shared": [*PPO, "objective.critic=shared"],
    "reward": REWARD,
}
"""Settings of each kind of run, beside SMALL and OFTEN; `reward` is a `spin reward`."""
ORPHAN_SECONDS = 20
"""Time that processes have to end after their driver."""


class Driver:
    """One process of spin; all processes it starts carry its mark in their environment."""

    def __init__(self, run_dir: Path, log: Path, overrides: Sequence[str] = (), verb: str = "run") -> None:
        self.run_dir = run_dir
        self.verb = verb
        self.started = time.time()
        self.mark = uuid.uuid4().hex
        command = [
            sys.executable,
            "-c",
            "from spin.cli.main import main; main()",
            verb,
            *SMALL,
            *OFTEN,
            f"run_dir={run_dir}",
            *overrides,
        ]
        environment = {**os.environ, "SPIN_CHAOS": self.mark, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        with log.open("a") as handle:
            self.process = subprocess.Popen(
                command, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    def wait_for_stage(self) -> None:
        """Wait until the driver trains a reward model, or has ended. Returns at once for a run."""
        while self.verb == "reward" and self.process.poll() is None and not self._is_training():
            time.sleep(0.05)

    def _is_training(self) -> bool:
        """Return whether this driver has reported progress of the reward model."""
        now = self.run_dir / "now.json"
        if not now.exists():
            return False
        progress = json.loads(now.read_text())
        return progress["time"] > self.started and progress["label"].startswith("reward model")

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of this driver."""
        return self.marked(self.mark)

    @staticmethod
    def marked(mark: str) -> list[psutil.Process]:
        """Return all living processes that carry the mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SPIN_CHAOS") == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, victim: str) -> bool:
        """Kill one process of this kind. Return False if none is alive."""
        if victim == "driver":
            self.process.kill()
            self.process.wait()
            return True
        for process in self.processes():
            try:
                title = " ".join(process.cmdline())
                if title.startswith(VICTIMS[victim]) or Path(title.split(" ")[0]).name == VICTIMS[victim]:
                    process.kill()
                    return True
            except psutil.Error:
                continue
        return False

    def orphans(self) -> list[str]:
        """Kill the processes that are alive ORPHAN_SECONDS after the driver; return their names."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = []
        for process in left:
            try:
                names.append(process.name())
                process.kill()
            except psutil.Error:
                continue
        return names
