"""Two real training processes (DDP and FSDP2) train a reward model as one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import write_model

pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from spin.config.training import Dtype, Sharding
from spin.models.lora import merge_adapter
from spin.models.policy import Policy, policy_digest
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.adapters import LORA
from tests.training.test_reward_training import TRAINING, make_job, make_rows
policy = Policy(sys.argv[1], policy_digest(Path(sys.argv[1])))
out, states, start, sharding = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Sharding[sys.argv[5]]
adapted = sys.argv[6] == "lora"
trainer = Trainer(Dtype.float32, sharding=sharding, adapter=LORA if adapted else None)
# Batches of 3 rankings: one worker has two of them.
training = replace(TRAINING, batch_size=3, checkpoint_every="2", epochs=4, learning_rate=3e-3)
steps = list(trainer.train(make_job(policy, training, states=states, resume_step=start), RowStream.whole(make_rows())))
weights = trainer.gathered() or trainer.model.state_dict()
if trainer.accelerator.process_index == 0:
    if adapted:
        weights = merge_adapter(trainer.model, weights)
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, out / "weights.pt")
    (out / "steps.json").write_text(json.dumps(steps))
"""


def train(
    folder: Path,
    name: str,
    world: int,
    sharding: str,
    states: str | None = None,
    start: int = 0,
    adapter: str = "none",
) -> None:
    """Train the reward model into the folder `name`, from step `start` of the training `states`."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    out, root = folder / name, Path(__file__).parents[2]
    out.mkdir()
    arguments = [folder / "policy", out, folder / (states or name) / "states", start, sharding, adapter]
    processes = []
    for rank in range(world):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        processes.append(subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, env=environment))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors


def read_steps(out: Path) -> list[dict[str, Any]]:
    """The figures of the steps, without the files of saved states."""
    return [{**step, "saved": None} for step in json.loads((out / "steps.json").read_text())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    write_model(folder / "policy", seed=0)
    train(folder, "one", 1, "none")
    train(folder, "ddp", 2, "none")
    train(folder, "fsdp", 2, "full")
    return folder


@pytest.mark.parametrize("two", ["ddp", "fsdp"])
def test_two_workers_have_the_losses_and_the_weights_of_one(trained: Path, two: str) -> None:
    one, found = read_steps(trained / "one"), read_steps(trained / two)
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in one], rel=1e-3, abs=1e-4)
    assert one[-1]["loss"] < one[0]["loss"]
    expected, weights = (torch.load(trained / name / "weights.pt") for name in ("one", two))
    assert weights.keys() == expected.keys()
    assert any("score" in name for name in weights)
    start = load_file(trained / "policy" / "model.safetensors")
    learnt, off = 0.0, 0.0
    for name, tensor in start.items():
        learnt += float((expected[name] - tensor).double().square().sum())
        off += float((expected[name] - weights[name]).double().square().sum())
    assert off**0.5 < 0.01 * learnt**0.5


def test_a_sharded_stage_that_is_resumed_ends_with_the_same_bits(trained: Path) -> None:
    train(trained, "resumed", 2, "full", states="fsdp", start=2)
    assert read_steps(trained / "resumed") == read_steps(trained / "fsdp")[2:]
    expected, weights = (torch.load(trained / name / "weights.pt") for name in ("fsdp", "resumed"))
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def test_two_workers_that_share_frozen_weights_train_the_adapter_and_the_head_of_one(trained: Path) -> None:
    train(trained, "one-lora", 1, "none", adapter="lora")
    train(trained, "fsdp-lora", 2, "full", adapter="lora")
    one, found = read_steps(trained / "one-lora"), read_steps(trained / "fsdp-lora")
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in one], rel=1e-3, abs=1e-4)
    assert one[-1]["loss"] < one[0]["loss"]
    expected, weights = (torch.load(trained / name / "weights.pt") for name in ("one-lora", "fsdp-lora"))
    assert weights.keys() == expected.keys()
    assert expected["score.weight"].any()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=2e-4)
