"""Read from the ledger which units of a plan are finished, and what is recorded about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from spin.config.load import load_config
from spin.config.run import RunConfig
from spin.run_dir.facts import Facts, KindTotals, SavedState, read_facts, to_record
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.plan import plan_units
from spin.run_dir.recorded_config import read_config
from spin.run_dir.unit import ROW_KINDS, Unit, kind_name


class RunState:
    """A plan of units together with the ledger of the finished ones."""

    def __init__(self, plan: Sequence[Unit], ledger: Ledger) -> None:
        self.plan = plan
        self.ledger = ledger
        # A run may have tens of thousands of units, and every stage looks up those of one kind.
        self._by_kind: dict[tuple[str, str], list[Unit]] = {}
        for unit in plan:
            self._by_kind.setdefault((unit.stage.name, unit.kind), []).append(unit)

    def stages(self, kind: str | None = None) -> list[Stage]:
        """Return the stages in order; with `kind`, only those with a finished unit of this kind."""
        found: dict[Stage, None] = {}
        for unit in self.plan:
            if kind is None or (unit.kind == kind and self.done(unit)):
                found[unit.stage] = None
        return list(found)

    def units(self, stage: Stage, kind: str) -> list[Unit]:
        """Return all units of one kind of a stage, in order of their shards."""
        return self._by_kind.get((stage.name, kind), [])

    def unit(self, stage: Stage, kind: str, shard: int = 0) -> Unit:
        """Return the unit of one kind of a stage. Raises IndexError when the plan has none."""
        return self.units(stage, kind)[shard]

    def sources(self, unit: Unit, kind: str) -> list[Unit]:
        """Return the units of one kind that a unit is made from."""
        found = []
        for name in unit.sources:
            # The given model is a source but no unit.
            source = self._by_name.get(name)
            if source is not None and source.kind == kind:
                found.append(source)
        return found

    def done(self, unit: Unit) -> bool:
        """Return True when the unit is finished, with the settings that the plan asks for."""
        record = self.ledger.get(unit.name)
        if record is None:
            return False
        return unit.settings is None or record.get("settings") == unit.settings

    def todo(self) -> list[Unit]:
        """Return the unfinished units in order."""
        # A stage whose policy is promoted needs no more rows: only its measurements may be missing.
        promoted = {stage.name for stage in self.stages("policy")}
        unfinished = []
        for unit in self.plan:
            needed = unit.stage.name not in promoted or unit.kind not in (*ROW_KINDS, "config")
            if needed and not self.done(unit):
                unfinished.append(unit)
        return unfinished

    def used_later(self, unit: Unit) -> bool:
        """Return True when a finished unit of another stage was made from this one."""
        # The measurements of the same stage do not count: they are made again if the policy is.
        return any(self.done(user) for user in self._users.get(unit.name, []) if user.stage != unit.stage)

    def final_policies(self) -> list[Unit]:
        """Return the results of a run: the finished policies that no other stage was made from."""
        found = []
        for stage in self.stages("policy"):
            unit = self.unit(stage, "policy")
            if not self.used_later(unit):
                found.append(unit)
        return found

    @cached_property
    def _by_name(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.plan}

    @cached_property
    def _users(self) -> dict[str, list[Unit]]:
        """For the name of each source, the units that are made from it."""
        users: dict[str, list[Unit]] = {}
        for unit in self.plan:
            for source in unit.sources:
                users.setdefault(source, []).append(unit)
        return users

    def facts(self, unit: Unit, facts_type: type[Facts]) -> Facts:
        """Return what the ledger records about a finished unit.

        A value that an older version of spin did not record has its default.

        Args:
            unit: A unit of the plan.
            facts_type: The dataclass of this kind of unit, such as SamplesFacts.

        Raises:
            KeyError: The unit is not finished.
        """
        record = self.ledger.get(unit.name)
        if record is None:
            raise KeyError(f"{unit.name} is not finished")
        return read_facts(record, facts_type)

    def record(self, unit: Unit, facts: Any) -> None:
        """Write the ledger line of a finished unit; `facts` is the dataclass of its kind."""
        self.ledger.append(unit.name, **to_record(facts))

    def totals(self, stage: Stage, kind: str) -> KindTotals | None:
        """Return the totals of all shards of one kind; None before they were recorded."""
        record = self.ledger.get(kind_name(stage, kind))
        return None if record is None else read_facts(record, KindTotals)

    def record_totals(self, stage: Stage, kind: str, totals: KindTotals) -> None:
        """Write the ledger line with the totals of all shards of one kind."""
        self.ledger.append(kind_name(stage, kind), **to_record(totals))

    def seconds(self, stage: Stage, kind: str) -> float | None:
        """Return the wall-clock seconds that one kind of work took in a stage.

        None if the work is not finished.
        """
        record = self.ledger.get(kind_name(stage, kind))
        return None if record is None else record.get("seconds")

    def saved_states(self, stage: Stage) -> dict[int, SavedState]:
        """Return the saved states of a stage's trainer by number of steps."""
        record = self.ledger.get(kind_name(stage, "trainer")) or {"states": {}}
        # JSON has made strings of the numbers.
        return {int(step): SavedState(**facts) for step, facts in record["states"].items()}

    def record_states(self, stage: Stage, states: Mapping[int, SavedState]) -> None:
        """Write the ledger line with the saved states of a stage's trainer."""
        plain = {step: dataclasses.asdict(state) for step, state in states.items()}
        self.ledger.append(kind_name(stage, "trainer"), states=plain)

    def digest(self, name: str) -> str | None:
        """Return the recorded digest of a unit, or of the given model; None if it has none yet."""
        record = self.ledger.get(name) or {}
        return record.get("sha256") or record.get("digest")


def prepared_rows(ledger: Ledger) -> dict[str, int]:
    """Return the number of rows of each prepared set; empty before the data are prepared."""
    # The line also holds digests; the numbers in it are the counts.
    record = ledger.get("data") or {}
    return {name: count for name, count in record.items() if isinstance(count, int)}


def plan_state(
    layout: RunLayout, config: RunConfig, iteration_configs: Sequence[RunConfig], ledger: Ledger
) -> RunState:
    """Return the state of a run with these configs; the numbers of rows come from the ledger."""
    return RunState(plan_units(layout, config, iteration_configs, prepared_rows(ledger)), ledger)


def read_state(layout: RunLayout, ledger: Ledger) -> RunState:
    """Return the state of a run from its directory alone; for status, bench and report.

    An iteration that has not begun is planned with the config of the run, without its schedule.
    """
    config = read_config(layout, ledger)

    # An iteration that has begun has written its config. Most of them are equal, and to parse one
    # takes about 10 ms, so each text is parsed once.
    known: dict[str, RunConfig] = {}
    iteration_configs = []
    for index in range(config.iterations):
        path = layout.iteration(index).config
        iteration_config = config
        if path.is_file():
            text = path.read_text()
            if text not in known:
                known[text] = load_config(path)
            iteration_config = known[text]
        iteration_configs.append(iteration_config)
    return plan_state(layout, config, iteration_configs, ledger)
