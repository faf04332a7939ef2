"""Two real training processes (DDP and FSDP2) train adapters as one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from spin.models.policy import policy_digest
from tests.tiny import write_model

pytestmark = pytest.mark.slow
SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from spin.config.objective import SpinObjective
from spin.config.training import Dtype, Sharding
from spin.models.lora import merge_adapter
from spin.models.policy import Adapter, Policy, policy_digest
from spin.models.policy_export import export_adapter
from spin.training.job import TrainingJob
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.adapters import LORA
from tests.training.test_trainer import ROWS, TRAINING, scored
base, out, states, start = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
sharding, dtype = Sharding[sys.argv[5]], Dtype[sys.argv[6]]
policy = model = Policy(str(base), policy_digest(base))
trainer = Trainer(dtype, sharding=sharding, adapter=dataclasses.replace(LORA, base_dtype=dtype))
training = dataclasses.replace(TRAINING, batch_size=3, micro_batch_tokens=12, learning_rate=1e-3, checkpoint_every="2")
losses = []
# The second stage goes on from the adapter of the first.
for stage in (0, 1):
    rows = RowStream.whole(scored(trainer, policy, ROWS))
    resume = start if stage == 1 else 0
    folder = str(states / str(stage))
    job = TrainingJob(policy, policy, SpinObjective(beta=0.5), training, 0, stage, states=folder, resume_step=resume)
    losses.append([step["loss"] for step in trainer.train(job, rows)])
    state, adapter = trainer.gathered(), out / str(stage)
    if trainer.accelerator.is_main_process:
        export_adapter(trainer.model, adapter, model, "base", state=state)
        if stage == 1:
            torch.save(merge_adapter(trainer.model, state), out / "merged.pt")
    trainer.accelerator.wait_for_everyone()
    digest = policy_digest(adapter, model.digest)
    policy = Policy(str(adapter), digest, Adapter(str(adapter), digest, model))
if trainer.accelerator.is_main_process:
    (out / "losses.json").write_text(json.dumps(losses))
"""


def train(folder: Path, name: str, world: int, *words: object) -> Path:
    """Train two stages into the folder `name`; `words` are the last arguments of SCRIPT."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    out, root = folder / name, Path(__file__).parents[2]
    out.mkdir()
    processes = []
    for rank in range(world):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments = [sys.executable, "-c", SCRIPT, *map(str, (folder / "base", out, *words))]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(arguments, cwd=root, stdout=pipe, stderr=pipe, text=True, env=environment))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_model(folder / "base", seed=0)
    return train(folder, "one", 1, folder / "states" / "one", 0, "none", "float32")


def compare(found: Path, expected: Path) -> None:
    """Check losses and adapters of two trainings."""
    losses = [json.loads((folder / "losses.json").read_text()) for folder in (found, expected)]
    for stage in (0, 1):
        assert losses[0][stage] == pytest.approx(losses[1][stage], rel=1e-3, abs=1e-4)
        weights = [load_file(folder / str(stage) / "adapter_model.safetensors") for folder in (found, expected)]
        assert weights[0].keys() == weights[1].keys()
        for key, weight in weights[0].items():
            torch.testing.assert_close(weight, weights[1][key], rtol=1e-2, atol=2e-4)


def test_two_workers_with_the_whole_base_train_the_adapter_of_one(one: Path) -> None:
    folder = one.parent
    compare(train(folder, "ddp", 2, folder / "states" / "ddp", 0, "none", "float32"), one)


def test_a_shared_base_gives_the_adapter_of_one_worker_and_a_saved_state_holds_no_base(one: Path) -> None:
    folder = one.parent
    states = folder / "states" / "fsdp"
    found = train(folder, "fsdp", 2, states, 0, "full", "float32")
    compare(found, one)
    merged = [torch.load(out / "merged.pt") for out in (found, one)]
    assert merged[0].keys() == merged[1].keys()
    saved = FileSystemReader(states / "1" / "step-000002" / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    assert len(saved) == 2 * 7 * 2
    assert all(".lora_" in name for name in saved)
    # A stage that goes on from the state ends with the same bits.
    resumed = train(folder, "resumed", 2, states, 2, "full", "float32")
    assert policy_digest(resumed / "1") == policy_digest(found / "1")


def test_a_shared_base_in_bfloat16_trains_adapters_in_float32(one: Path) -> None:
    folder = one.parent
    found = train(folder, "bfloat16", 2, folder / "states" / "bfloat16", 0, "full", "bfloat16")
    losses = json.loads((found / "losses.json").read_text())
    assert losses[0][0] == pytest.approx(0.6931, abs=2e-2)
    assert losses[1][-1] < losses[0][0]
    weights = load_file(found / "1" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
