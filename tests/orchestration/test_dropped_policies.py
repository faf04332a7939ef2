"""Which policies `keep.policies` deletes, on folders and ledger lines made by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spin.config.benchmark import BenchmarkConfig, KeepConfig
from spin.config.groups import DataConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.policy_gradient import CriticModel, GrpoObjective, PpoObjective
from spin.config.run import Baseline, RunConfig
from spin.models.policy import Adapter, Policy
from spin.orchestration.context import RunContext
from spin.orchestration.dropped_policies import drop_policies
from spin.orchestration.iteration import find_critic
from spin.preflight.checks import check_promoted
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import plan_state
from spin.run_dir.store import RunStore


def make_run(root: Path, keep: int | None, best: str | None = None, baseline: bool = False) -> Any:
    """A run of five iterations whose policies are all promoted, and a baseline of one."""
    config = RunConfig(
        str(root),
        iterations=5,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        generation=GenerationConfig(),
        objective=SpinObjective(),
        benchmark=BenchmarkConfig(enabled=False),
        keep=KeepConfig(policies=keep),
        baseline=Baseline.sft if baseline else None,
    )
    layout, store = RunLayout(root), RunStore(root)
    ledger = Ledger(layout.ledger, store)
    if best is not None:
        ledger.append("best", policy=best)
    state = plan_state(layout, config, [config] * 5, ledger)
    for unit in state.plan:
        if unit.kind == "policy":
            unit.path.mkdir(parents=True)
            (unit.path / "config.json").write_text("{}")
            state.record(unit, PolicyFacts(digest=unit.name))
    return SimpleNamespace(config=config, layout=layout, state=state, ledger=ledger, store=store)


def list_kept(run: Any) -> list[str]:
    return sorted(str(path.parent.relative_to(run.layout.root)) for path in run.layout.root.glob("*/*/policy"))


def test_the_newest_and_the_best_policy_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=2, best="iterations/001")
    drop_policies(run, run.layout.iteration(4))
    assert list_kept(run) == ["iterations/001", "iterations/003", "iterations/004"]
    # The ledger says so, and a launch does not ask for the deleted ones.
    facts = [run.state.facts(run.state.unit(run.layout.iteration(index), "policy"), PolicyFacts) for index in range(5)]
    assert [entry.dropped for entry in facts] == [True, False, True, False, False]
    assert facts[0].digest == "iterations/000/policy"


def test_without_the_key_all_policies_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=None)
    drop_policies(run, run.layout.iteration(4))
    assert len(list_kept(run)) == 5


def test_a_folder_that_a_kill_left_behind_is_deleted_later_without_a_second_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=4)
    drop_policies(run, run.layout.iteration(4))
    lines = len(run.layout.ledger.read_text().splitlines())
    run.layout.iteration(0).policy.mkdir()
    drop_policies(run, run.layout.iteration(4))
    assert not run.layout.iteration(0).policy.exists()
    assert len(run.layout.ledger.read_text().splitlines()) == lines


def test_the_baseline_and_the_iterations_are_counted_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=3, baseline=True)
    drop_policies(run, run.layout.baseline(4))
    kept = list_kept(run)
    assert [name for name in kept if name.startswith("baseline")] == ["baseline/002", "baseline/003", "baseline/004"]
    assert len([name for name in kept if name.startswith("iterations")]) == 5


def test_a_critic_stays_until_the_next_iteration_with_one_of_its_kind(tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=1)
    head = PpoObjective(critic=CriticModel.shared)
    run.iteration_configs = [
        SimpleNamespace(objective=objective)
        for objective in (PpoObjective(), GrpoObjective(), head, PpoObjective(), GrpoObjective())
    ]
    critic = run.layout.iteration(0).critic
    critic.mkdir()
    for index in (1, 2):
        drop_policies(run, run.layout.iteration(index))
        assert critic.exists()
    assert not run.layout.iteration(0).policy.exists()
    # Iteration 3 has started from it.
    drop_policies(run, run.layout.iteration(3))
    assert not critic.exists()
    # No iteration follows that would start from the head of iteration 2.
    run.layout.iteration(2).critic.mkdir()
    drop_policies(run, run.layout.iteration(4))
    assert not run.layout.iteration(2).critic.exists()


def test_the_token_budget_counts_a_critic_that_only_a_later_iteration_trains() -> None:
    objectives = [GrpoObjective(), PpoObjective()]
    configs = [SimpleNamespace(objective=objective) for objective in objectives]
    run: Any = SimpleNamespace(iteration_configs=configs)
    assert RunContext.trains_own_critic.fget(run) is True  # type: ignore[attr-defined]
    configs[1].objective = PpoObjective(critic=CriticModel.shared)
    assert RunContext.trains_own_critic.fget(run) is False  # type: ignore[attr-defined]


def test_a_launch_checks_only_policies_that_were_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, keep=1)
    drop_policies(run, run.layout.iteration(4))
    unit = run.state.unit(run.layout.iteration(4), "policy")
    assert not run.state.used_later(unit)
    check_promoted(run.state, run.store)


def test_a_critic_begins_as_the_reward_model_else_as_the_opponent_or_the_base_of_an_adapter(tmp_path: Path) -> None:
    base, reward_model = Policy("model", "1"), Policy("reward", "2")
    merged = Policy("whole", "3", Adapter("adapter", "4", base))
    served = Policy("adapter", "4", Adapter("adapter", "4", base))
    run: Any = SimpleNamespace(iteration_configs=[SimpleNamespace(objective=PpoObjective())], reward_model=None)
    assert find_critic(run, 0, base) == base
    assert find_critic(run, 0, merged) == merged
    assert find_critic(run, 0, served) == base
    run.reward_model = reward_model
    assert find_critic(run, 0, served) == reward_model
    run.iteration_configs = [SimpleNamespace(objective=PpoObjective(critic=CriticModel.shared))]
    assert find_critic(run, 0, served) == served
