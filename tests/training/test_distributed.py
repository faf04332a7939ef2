"""Two real training processes (DDP and FSDP2) compute what one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from spin.models.policy import policy_digest
from spin.training.checkpoint import state_digest, state_folder
from tests.tiny import write_model

pytestmark = pytest.mark.slow
OBJECTIVES = ("spin", "kto", "kto_pair")
SCRIPT = """
import dataclasses, json, sys
import torch
torch.set_num_threads(1)
from transformers import AutoTokenizer
from spin.training.row_stream import RowStream
from spin.config.training import Dtype, Sharding
from spin.models.policy_export import export_policy
from spin.models.policy import Policy, policy_digest
from spin.config.objective import KtoObjective, KtoPairObjective, SpinObjective
from spin.training.job import TrainingJob
from spin.training.trainer import Trainer
from tests.training.test_trainer import ROWS, TRAINING, scored
from pathlib import Path
policy, base = (Policy(path, policy_digest(Path(path))) for path in sys.argv[1:3])
out, states, start, sharding = Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), Sharding[sys.argv[6]]
trainer = Trainer(Dtype.float32, sharding=sharding)
rank = trainer.accelerator.process_index
steps = {}
cases = ((SpinObjective(beta=0.5), policy), (KtoObjective(beta=0.5), base), (KtoPairObjective(beta=0.5), base))
for objective, reference in cases:
    name, rows = objective.name, scored(trainer, reference, ROWS)
    # Batches of 3 rows, a row a pass: one pass for a worker and two for the other;
    # at the end a batch of one row for both.
    training = dataclasses.replace(
        TRAINING, batch_size=3, micro_batch_tokens=12, learning_rate=1e-5, checkpoint_every="2"
    )
    stream = RowStream.whole(rows)
    job = TrainingJob(policy, reference, objective, training, 0, 1, states=str(states / name), resume_step=start)
    steps[name] = list(trainer.train(job, stream))
    state = trainer.gathered()
    if sharding is Sharding.full:
        parts = {key: parameter.to_local() for key, parameter in trainer.model.named_parameters()}
        torch.save(parts, out / f"{name}-{rank}.pt")
    if rank == 0:
        export_policy(trainer.model, AutoTokenizer.from_pretrained(policy.path), out / name, "float32", state=state)
if rank == 0:
    (out / "steps.json").write_text(json.dumps(steps))
"""


def train(
    folder: Path, name: str, world: int, sharding: str = "none", states: str | None = None, start: int = 0
) -> None:
    """Train all objectives into the folder `name`.

    `states` are those of another training, which this one continues from step `start`.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    out, root = folder / name, Path(__file__).parents[2]
    out.mkdir()
    words = [folder / "policy", folder / "base", out, folder / (states or name) / "states", start, sharding]
    processes = []
    for rank in range(world):
        ranks = (
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            if world > 1
            else {}
        )
        environment = {**os.environ, **ranks, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, "-c", SCRIPT, *map(str, words)]
        processes.append(
            subprocess.Popen(
                arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_model(folder / "policy", seed=0)
    write_model(folder / "base", seed=1)
    train(folder, "one", 1)
    train(folder, "ddp", 2)
    train(folder, "fsdp", 2, "full")
    return folder


def steps(out: Path) -> dict[str, list[dict[str, float]]]:
    return json.loads((out / "steps.json").read_text())


def weights(policy: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).named_parameters())


@pytest.mark.parametrize("two", ["ddp", "fsdp"])
def test_two_workers_log_the_figures_of_one_for_spin_and_kto(trained: Path, two: str) -> None:
    one, found = steps(trained / "one"), steps(trained / two)
    assert set(one) == set(OBJECTIVES)
    assert one["kto"][0]["kl"] > 0.1
    for name in OBJECTIVES:
        assert len(one[name]) == 6
        for a, b in zip(one[name], found[name], strict=True):
            for left_out in (
                "rewards/accuracies",
                "saved",
            ):  # a margin near 0 has the sign of its rounding, a state its own files
                assert (left_out in a) == (left_out in b)
                a.pop(left_out, None), b.pop(left_out, None)
            assert b == pytest.approx(a, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("two", ["ddp", "fsdp"])
def test_one_process_loads_what_two_have_trained_and_finds_the_weights_of_one(
    trained: Path, two: str, name: str
) -> None:
    start, one, found = weights(trained / "policy"), weights(trained / "one" / name), weights(trained / two / name)
    assert sorted(path.name for path in (trained / two / name).iterdir()) == sorted(
        path.name for path in (trained / "one" / name).iterdir()
    )
    learnt, off = (
        sum(float((a[key] - b[key]).detach().double().square().sum()) for key in start) ** 0.5
        for a, b in ((one, start), (one, found))
    )
    assert off < 1e-3 * learnt  # so something was learnt


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sharded_model_is_written_whole_bit_by_bit_and_each_worker_held_half_of_it(trained: Path, name: str) -> None:
    parts = [torch.load(trained / "fsdp" / f"{name}-{rank}.pt") for rank in range(2)]
    written = weights(trained / "fsdp" / name)
    assert parts[0].keys() == parts[1].keys() == written.keys()
    for key, tensor in written.items():
        assert torch.equal(torch.cat([part[key] for part in parts]), tensor)
    rows = len(parts[0]["model.embed_tokens.weight"]), len(parts[1]["model.embed_tokens.weight"])
    assert rows == (129, 128)  # of 257
    assert len(parts[0]["model.norm.weight"]) == 32  # of 64


@pytest.mark.parametrize("two", ["ddp", "fsdp"])
def test_the_digest_that_two_workers_give_is_that_of_all_files_of_the_state(trained: Path, two: str) -> None:
    for name in OBJECTIVES:
        for step in (2, 4):
            folder = state_folder(trained / two / "states" / name, step)
            assert steps(trained / two)[name][step - 1]["saved"] == state_digest(folder)
            assert not folder.with_name(folder.name + ".tmp").exists()


def test_a_sharded_state_that_was_saved_and_loaded_ends_with_the_weights_of_the_undisturbed_stage(
    trained: Path,
) -> None:
    train(trained, "resumed", 2, "full", states="fsdp", start=2)
    for name in OBJECTIVES:
        assert (
            len(list(state_folder(trained / "fsdp" / "states" / name, 2).rglob("*.distcp"))) == 4
        )  # of each worker: weights, and optimizer
        whole, rest = steps(trained / "fsdp")[name], steps(trained / "resumed")[name]
        assert [{**step, "saved": None} for step in rest] == [{**step, "saved": None} for step in whole[2:]]
        assert policy_digest(trained / "resumed" / name) == policy_digest(trained / "fsdp" / name)
