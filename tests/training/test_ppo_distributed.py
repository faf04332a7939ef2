"""Two real training processes (DDP and FSDP2) train policy and critic as one process does."""

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

from spin.models.policy import policy_digest
from spin.models.scalar_head import load_reward_model
from spin.models.value_head import write_value_head
from tests.tiny import write_model

pytestmark = pytest.mark.slow
CRITICS = ("separate", "shared")
SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import AutoTokenizer
from spin.config.policy_gradient import CriticModel, PpoObjective
from spin.config.training import Dtype, Sharding
from spin.data.examples import Completion, Example
from spin.models.critic_export import export_critic
from spin.models.policy import Policy, policy_digest
from spin.models.policy_export import export_policy
from spin.training.job import TrainingJob
from spin.training.pretraining_rows import PretrainingRows
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.training.test_rollout_training import TRAINING, make_ppo_rows
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
trainer = Trainer(Dtype.float32, sharding=Sharding[sys.argv[3]])
rank = trainer.accelerator.process_index
read = lambda name: Policy(str(folder / name), policy_digest(folder / name))
policy, base = read("policy"), read("base")
truths = [Example(f"prompt {i}", [3 + i, 7, 9], (Completion([50 + i, 51, 0], True),)) for i in range(3)]
# Batches of 5 answers and 2 truths, few of them in a pass: the workers have different numbers of passes.
training = replace(TRAINING, batch_size=5, micro_batch_tokens=12, learning_rate=1e-5, checkpoint_every="3", keep=9)
steps = {}

def train(label, job, examples):
    taken = PretrainingRows(truths, seed=0, iteration=1, count=2)
    steps[label] = list(trainer.train(job, RowStream.whole(examples), taken))
    state, critic_state = trainer.gathered(), trainer.gathered_critic()
    if rank == 0:
        tokenizer = AutoTokenizer.from_pretrained(policy.path)
        export_policy(trainer.model, tokenizer, out / label / "policy", "float32", state=state)
        export_critic(trainer.critic_model, tokenizer, out / label / "critic", "float32", critic_state)

for name in sys.argv[4:]:
    critic = read(name)
    # With weight 10 the norm of the critic's gradient is limited.
    settings = {"kl_weight": 0.1, "ptx_weight": 0.5, "ptx_rows": 2, "critic_learning_rate": 3e-5}
    objective = PpoObjective(critic=CriticModel[name], value_weight=10.0, **settings)
    rows = make_ppo_rows(trainer, (policy, base), objective, critic)
    job = TrainingJob(policy, policy, objective, training, 0, 1, states=str(out / "states" / name), critic=critic)
    train(name, job, rows)
    if trainer.accelerator.is_fsdp2:
        for kind, model in (("policy", trainer.model), ("critic", trainer.critic_model)):
            parts = {key: weight.to_local() for key, weight in model.named_parameters()}
            torch.save(parts, out / f"{name}-{kind}-{rank}.pt")
        train(f"{name}-resumed", replace(job, resume_step=3), rows)
if rank == 0:
    (out / "steps.json").write_text(json.dumps(steps))
"""


def train(folder: Path, name: str, world: int, sharding: str) -> None:
    """Train with each critic into the folder `name`; if sharded, also from a saved state."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    out, root = folder / name, Path(__file__).parents[2]
    out.mkdir()
    arguments = [folder, out, sharding, *CRITICS]
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


def read_steps(out: Path) -> Any:
    """The figures of the steps by critic, without the files of saved states."""
    found = json.loads((out / "steps.json").read_text())
    for steps in found.values():
        for step in steps:
            step.pop("saved", None)
    return found


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a written policy or critic."""
    [file] = folder.glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    # Without tied embeddings, policy and critic have as many parameters as each other.
    write_model(folder / "policy", seed=0, tied=False)
    write_model(folder / "base", seed=1, tied=False)
    # Critics of an earlier iteration.
    model = load_reward_model(folder / "policy")
    head = torch.linspace(-0.1, 0.1, 64).view(1, 64)
    with torch.no_grad():
        model.score.weight.copy_(head)
    model.save_pretrained(folder / "separate")
    write_value_head(head, folder / "shared")
    train(folder, "one", 1, "none")
    train(folder, "ddp", 2, "none")
    train(folder, "fsdp", 2, "full")
    return folder


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("two", ["ddp", "fsdp"])
def test_two_workers_have_the_figures_and_the_weights_of_one(trained: Path, two: str, critic: str) -> None:
    one, found = read_steps(trained / "one")[critic], read_steps(trained / two)[critic]
    assert len(one) == len(found) == 9
    for expected, figures in zip(one, found, strict=True):
        assert figures == pytest.approx(expected, rel=2e-3, abs=1e-4)
    for kind, start in (("policy", trained / "policy"), ("critic", trained / critic)):
        begun, expected, weights = (
            read_weights(path) for path in (start, trained / "one" / critic / kind, trained / two / critic / kind)
        )
        assert begun.keys() == expected.keys() == weights.keys()
        learnt, off = 0.0, 0.0
        for name, tensor in begun.items():
            learnt += float((expected[name] - tensor).double().square().sum())
            off += float((expected[name] - weights[name]).double().square().sum())
        assert off**0.5 < 1e-3 * learnt**0.5, kind  # so something was learnt


@pytest.mark.parametrize("critic", CRITICS)
def test_sharded_policy_and_critic_are_written_whole_and_each_worker_held_half(trained: Path, critic: str) -> None:
    for kind in ("policy", "critic"):
        first, second = (torch.load(trained / "fsdp" / f"{critic}-{kind}-{rank}.pt") for rank in range(2))
        written = read_weights(trained / "fsdp" / critic / kind)
        assert first.keys() == second.keys() == written.keys()
        for name, tensor in written.items():
            assert torch.equal(torch.cat([first[name], second[name]]), tensor), name
    if critic == "separate":
        assert len(first["model.embed_tokens.weight"]) == 129  # of 257
        loaded = dict(load_reward_model(trained / "fsdp" / critic / "critic").named_parameters())
        assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())


def test_a_sharded_stage_that_is_resumed_ends_with_the_same_bits(trained: Path) -> None:
    steps = read_steps(trained / "fsdp")
    for critic in CRITICS:
        assert steps[f"{critic}-resumed"] == steps[critic][3:]
        for kind in ("policy", "critic"):
            whole, resumed = (policy_digest(trained / "fsdp" / name / kind) for name in (critic, f"{critic}-resumed"))
            assert whole == resumed, kind
