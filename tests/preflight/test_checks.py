"""The checks before a launch, one by one."""

from pathlib import Path

import pytest

from spin.config.cluster import ClusterConfig
from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import TrainingConfig
from spin.errors import CheckpointError, ConfigError
from spin.models.policy import policy_digest
from spin.preflight.checks import check_placement, check_promoted, check_writable
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import RunState, plan_state
from spin.run_dir.store import RunStore


def config_of(run_dir: Path) -> RunConfig:
    return RunConfig(
        str(run_dir),
        iterations=2,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=FeedbackConfig(),
        objective=SpinObjective(),
    )


def promote(run_dir: Path, index: int) -> Path:
    """Record an iteration as begun and promoted; return the weights of its policy."""
    layout = RunLayout(run_dir)
    stage = layout.iteration(index)
    stage.policy.mkdir(parents=True)
    weights = stage.policy / "model.safetensors"
    weights.write_bytes(bytes([index]))
    ledger = Ledger(layout.ledger)
    ledger.append(f"{stage.name}/config", keys={})
    ledger.append(f"{stage.name}/policy", digest=policy_digest(stage.policy))
    return weights


def state_of(run_dir: Path) -> RunState:
    config = config_of(run_dir)
    layout = RunLayout(run_dir)
    return plan_state(layout, config, [config, config], Ledger(layout.ledger))


def test_a_policy_that_later_work_was_made_with_must_be_as_it_was_promoted(tmp_path: Path) -> None:
    first, second = promote(tmp_path, 0), promote(tmp_path, 1)
    store = RunStore(tmp_path)
    check_promoted(state_of(tmp_path), store)
    second.write_bytes(b"altered")  # the last one can be trained again
    check_promoted(state_of(tmp_path), store)
    first.write_bytes(b"altered")
    with pytest.raises(CheckpointError, match="iterations/000/policy was altered"):
        check_promoted(state_of(tmp_path), store)


def test_a_policy_is_checked_as_soon_as_the_next_iteration_has_begun(tmp_path: Path) -> None:
    promote(tmp_path, 0).unlink()
    store = RunStore(tmp_path)
    check_promoted(state_of(tmp_path), store)
    Ledger(RunLayout(tmp_path).ledger).append("iterations/001/config", keys={})
    with pytest.raises(CheckpointError, match="iterations/000/policy was altered"):
        check_promoted(state_of(tmp_path), store)


def test_engines_and_trainers_must_fit_on_the_gpus_that_the_config_names(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.generation = GenerationConfig(replicas=2)
    config.cluster = ClusterConfig(gpus=3)
    check_placement(config)
    config.cluster = ClusterConfig(gpus=2)
    with pytest.raises(ConfigError, match="3 GPUs wanted"):
        check_placement(config)
    config.cluster = ClusterConfig(address="auto", gpus=2)  # the nodes are known once it is joined
    check_placement(config)


def test_a_run_directory_must_lie_below_a_folder(tmp_path: Path) -> None:
    check_writable(RunLayout(tmp_path / "new" / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(RunLayout(tmp_path / "file" / "run"))


def test_more_processes_than_the_memory_holds_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.cluster = ClusterConfig(gpus=0)
    check_placement(config)
    config.training = TrainingConfig(workers=1000, batch_size=1000)
    with pytest.raises(ConfigError, match="training.workers=1000 start 1001 processes of at least"):
        check_placement(config)
