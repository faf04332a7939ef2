"""Two real training processes compute what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_model

pytestmark = pytest.mark.slow
SCRIPT = """
import dataclasses, json, sys
import torch
torch.set_num_threads(1)
from spin.examples import Rows
from spin.groups import Dtype
from spin.model import Policy, policy_digest
from spin.objective_config import KtoObjective, KtoPairObjective, SpinObjective
from spin.trainer import Trainer
from tests.test_trainer import ROWS, TRAINING, scored
from pathlib import Path
policy, base = (Policy(path, policy_digest(Path(path))) for path in sys.argv[1:3])
trainer = Trainer(Dtype.float32)
out = {}
for objective, reference in ((SpinObjective(beta=0.5), policy), (KtoObjective(beta=0.5), base), (KtoPairObjective(beta=0.5), base)):
    rows = scored(trainer, reference, ROWS)
    training = dataclasses.replace(TRAINING, batch_size=3, learning_rate=1e-5)  # odd batches, and at the end a batch of one row for two workers
    out[objective.name] = list(trainer.train(policy, reference, Rows.whole(rows), objective, training, 0, 1))
if trainer.accelerator.is_main_process:
    print(json.dumps(out))
"""


def run(folder: Path, world: int) -> dict[str, list[dict[str, float]]]:
    processes = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"} if world > 1 else {}
        arguments = [sys.executable, "-c", SCRIPT, str(folder / "policy"), str(folder / "base")]
        root = str(Path(__file__).parent.parent)
        environment = {**os.environ, **ranks, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return json.loads(outputs[0][0].splitlines()[-1])


def test_two_workers_log_the_figures_of_one_for_spin_and_kto(tmp_path: Path) -> None:
    write_model(tmp_path / "policy", seed=0)
    write_model(tmp_path / "base", seed=1)
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    assert one["kto"][0]["kl"] > 0.1
    for name, steps in one.items():
        for a, b in zip(steps, two[name], strict=True):
            a.pop("rewards/accuracies"), b.pop("rewards/accuracies")  # a margin near 0 has the sign of its rounding
            assert b == pytest.approx(a, rel=2e-3, abs=1e-4)
