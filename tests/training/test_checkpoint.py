"""When a trainer's state is due, which states are of use, and which go."""

import dataclasses
import hashlib
import threading
from pathlib import Path

import pytest
from accelerate import Accelerator

from spin.config.training import TrainingConfig
from spin.errors import ConfigError
from spin.training.checkpoint import (
    Saver,
    combine_digests,
    hash_files,
    list_own_files,
    prune_states,
    state_digest,
    state_folder,
    usable_states,
)


def saver(states: Path, every: str, times: list[float]) -> Saver:
    return Saver(Accelerator(cpu=True), states, TrainingConfig(checkpoint_every=every), clock=lambda: times[0])


def test_a_state_is_due_every_so_many_steps_or_minutes_or_when_the_driver_asks(tmp_path: Path) -> None:
    now = [0.0]
    steps = saver(tmp_path, "3", now)
    assert [step for step in range(1, 8) if steps.due(step)] == [3, 6]
    minutes = saver(tmp_path, "1.5min", now)
    now[0] = 89.0
    assert not minutes.due(1)
    now[0] = 90.0
    assert minutes.due(2)
    asked = threading.Event()
    never = Saver(Accelerator(cpu=True), tmp_path, TrainingConfig(checkpoint_every="0"), asked.is_set)
    assert not never.due(3)
    asked.set()
    assert never.due(4)


def test_a_state_that_takes_long_is_saved_less_often(tmp_path: Path) -> None:
    # The clock when it starts, when a state is due, around saving, and at two later steps.
    moments = iter([0.0, 60.0, 60.0, 70.0, 369.0, 370.0])
    training = TrainingConfig(checkpoint_every="1min")
    slow = Saver(Accelerator(cpu=True), tmp_path, training, clock=lambda: next(moments))
    assert slow.due(1)
    slow.save(1)
    # It took 10 s, so the next one is due after 300 s.
    assert not slow.due(2)
    assert slow.due(3)


@pytest.mark.parametrize("every", ["soon", "-1", "min", "10 min", "1.5"])
def test_an_interval_that_is_none_is_refused(every: str) -> None:
    with pytest.raises(ConfigError, match="expected optimizer steps"):
        dataclasses.replace(TrainingConfig(), checkpoint_every=every)


def test_only_what_is_older_goes_for_the_trainer_may_be_ahead_of_the_driver(tmp_path: Path) -> None:
    for name in ("step-000002", "step-000004.tmp", "step-000006", "step-000008", "step-000010.tmp"):
        (tmp_path / name).mkdir()
    prune_states(tmp_path, [6])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000006", "step-000008", "step-000010.tmp"]


def test_the_digest_of_a_state_is_that_of_its_files_by_name(tmp_path: Path) -> None:
    names = [f"optimizer_0/__{rank}_0.distcp" for rank in range(12)] + ["random_states_0.pkl"]
    (tmp_path / "optimizer_0").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    lines = [f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in sorted(names)]
    assert state_digest(tmp_path) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_each_worker_has_files_of_its_own_in_a_state(tmp_path: Path) -> None:
    of_rank = {
        0: ["pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp", "random_states_0.pkl", "model_1.safetensors"],
        1: ["optimizer_0/__1_0.distcp", "optimizer_0/__1_1.distcp", "random_states_1.pkl"],
    }
    # An older run had more workers.
    of_rank[0].append("random_states_2.pkl")
    for name in [*of_rank[0], *of_rank[1]]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    digests = {}
    for rank, names in of_rank.items():
        own = list_own_files(tmp_path, rank, 2)
        assert sorted(own) == sorted(tmp_path / name for name in names)
        digests |= hash_files(tmp_path, own)
    assert combine_digests(digests) == state_digest(tmp_path)


def test_a_state_that_is_gone_or_altered_is_of_no_use(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        state_folder(tmp_path, step).mkdir()
        (state_folder(tmp_path, step) / "weights").write_text(str(step))
    known = {str(step): state_digest(state_folder(tmp_path, step)) for step in (2, 4, 10)}
    known["12"] = known["2"]
    (state_folder(tmp_path, 4) / "weights").write_text("5")
    assert usable_states(tmp_path, known) == ([2, 10], [4, 12])
