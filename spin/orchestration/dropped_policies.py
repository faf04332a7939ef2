"""Delete the policies and the reward models that `keep.policies` does not keep."""

from __future__ import annotations

from dataclasses import replace

from spin.config.policy_gradient import has_same_critic
from spin.orchestration.context import RunContext
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.paths import Stage


def drop_policies(run: RunContext, newest: Stage) -> None:
    """Delete older policies of the same kind, iterations or baseline, than the newest ones.

    The best policy of the run so far stays.

    Args:
        run: The run.
        newest: The stage of the policy that was promoted last.
    """
    keep = run.config.keep.policies
    if keep is None or newest.index < keep:
        return
    best = (run.ledger.get("best") or {}).get("policy")
    for stage in run.state.stages("policy"):
        is_older = 0 <= stage.index <= newest.index - keep
        if not is_older or stage.is_baseline != newest.is_baseline or stage.name == best:
            continue
        # The ledger first: a policy that it names must be there at a resume.
        unit = run.state.unit(stage, "policy")
        facts = run.state.facts(unit, PolicyFacts)
        if not facts.dropped:
            run.state.record(unit, replace(facts, dropped=True))
        # After a kill in between, the folder is still there.
        if unit.path.exists():
            run.store.delete(unit.path)
        if stage.critic.exists() and not starts_later_critic(run, stage.index, newest.index):
            run.store.delete(stage.critic)
    if not newest.is_baseline:
        drop_reward_models(run, newest.index - keep)


def starts_later_critic(run: RunContext, index: int, newest: int) -> bool:
    """Return True when an iteration after the newest one starts from the critic of an earlier one.

    It is the next iteration whose objective has a critic of the same kind; there may be others
    without a critic in between.
    """
    own = run.iteration_configs[index].objective
    for later in range(index + 1, len(run.iteration_configs)):
        if has_same_critic(own, run.iteration_configs[later].objective):
            return later > newest
    return False


def drop_reward_models(run: RunContext, last: int) -> None:
    """Delete the reward models of the iterations up to `last`; that of the start stays."""
    for stage in run.state.stages("reward_model"):
        if not 0 <= stage.index <= last:
            continue
        unit = run.state.unit(stage, "reward_model")
        facts = run.state.facts(unit, PolicyFacts)
        if not facts.dropped:
            run.state.record(unit, replace(facts, dropped=True))
        # After a kill in between, the folder is still there.
        if unit.path.exists():
            run.store.delete(unit.path)
