"""Where each actor runs: placement groups from the config and the resources of the nodes.

    generator  a bundle for each engine, spread over the nodes; a GPU for each tensor-parallel part
    trainer    one bundle for each rank, on as few nodes as possible
    judge      only with a `judge.model` of its own: a bundle for each of its engines, or one
               without a GPU for the requests to an endpoint
    reward_scorer  only with `reward_model.backend=vllm`: a bundle for its engine
    scorer     only with `cluster.placement=split`: shares the GPU of the first engine, or has a
               bundle of its own if that engine takes several GPUs (and on CPUs)
    colocated  engine i, trainer i, judge i and reward scorer i share one bundle and its GPU

When a node is lost, Ray places its bundles again once there is room, and restarts their actors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from spin.config.cluster import Placement
from spin.config.reward_model import Backend
from spin.config.run import RunConfig
from spin.errors import ConfigError

WAIT_NOTICE_SECONDS = 10.0
"""Seconds of waiting for room on the cluster after which a message says so."""


class Role(Enum):
    """The task of the actors in a worker group."""

    generator = "generator"
    trainer = "trainer"
    scorer = "scorer"
    judge = "judge"
    reward_scorer = "reward_scorer"


@dataclass(frozen=True)
class RoleDemand:
    """How many actors of a role a run needs, and where they may run."""

    role: Role
    count: int
    gpus: float
    """GPUs of one actor that has a bundle of its own; 0 on a cluster without GPUs."""
    strategy: str
    """Ray's placement strategy; roles with the same strategy share a placement group."""
    shares_with: Role | None = None
    """Actor i runs in the bundle of actor i of this role."""


@dataclass
class Bundle:
    """One bundle of a placement group and the actors that share it equally."""

    gpus: float
    actors: list[tuple[Role, int]] = field(default_factory=list)
    """Role and number of each actor."""


@dataclass(frozen=True)
class Slot:
    """The place of one actor: its placement group, its bundle, and its part of the bundle."""

    group: int
    bundle: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class PlacementPlan:
    """The placement groups that a run asks for, and the slot of each actor."""

    groups: list[tuple[str, list[dict[str, float]]]]
    """Strategy and bundles (resource name to amount) of each placement group."""
    slots: dict[Role, list[Slot]]
    """By role, in the order of the actors' numbers."""


class PlacementGroups:
    """The placement groups of a run, after Ray has reserved them."""

    def __init__(self, plan: PlacementPlan, groups: list[PlacementGroup]) -> None:
        self._plan = plan
        self._groups = groups

    def actor_options(self, role: Role, number: int) -> dict[str, Any]:
        """Return the Ray options that place actor `number` of a role."""
        slot = self._plan.slots[role][number]
        strategy = PlacementGroupSchedulingStrategy(
            self._groups[slot.group],
            placement_group_bundle_index=slot.bundle,
            placement_group_capture_child_tasks=False,
        )
        return {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "scheduling_strategy": strategy}

    def uses_gpus(self, role: Role) -> bool:
        """Return True if the actors of a role have a GPU."""
        return self._plan.slots[role][0].gpus > 0

    def lacks_room(self, role: Role) -> bool:
        """Return True when a bundle of the role lost its node and has no other one yet."""
        group = self._plan.slots[role][0].group
        return ray.util.placement_group_table(self._groups[group])["state"] != "CREATED"


def plan_placement(config: RunConfig, nodes: list[dict[str, float]]) -> PlacementPlan:
    """Plan the placement groups of a run on nodes with these resources.

    Engines and trainers on CPUs take turns, so each asks for the largest part of a CPU with which
    all fit. Raises ConfigError when the actors do not fit.
    """
    # Distribute the actors over bundles, and the bundles over placement groups.
    num_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    demands = role_demands(config, num_gpus)
    groups = _fill_bundles(demands)
    bundles = [bundle for _, members in groups for bundle in members]

    # Refuse a run that needs more GPUs than there are.
    wanted_gpus = sum(bundle.gpus for bundle in bundles)
    if num_gpus and wanted_gpus > num_gpus:
        scorer_alone = any(demand.role is Role.scorer and demand.shares_with is None for demand in demands)
        more = " + 1 that scores" if scorer_alone else ""
        if config.judge.is_own_model:
            more += " + judge.replicas"
        if config.reward_model.backend is Backend.vllm:
            more += " + 1 for reward_model.backend=vllm"
        raise ConfigError(
            f"{wanted_gpus:g} GPUs wanted (generation.replicas × tensor_parallel_size + training.workers{more}), "
            f"{num_gpus:g} found; lower one of them, or share the GPUs: cluster.placement=colocated"
        )

    # Give every actor the same part of a CPU, and an equal part of its bundle's GPUs.
    most_actors = max(len(bundle.actors) for bundle in bundles)
    cpu = _largest_cpu_part([node.get("CPU", 0.0) for node in nodes], len(bundles), most_actors)
    slots: dict[Role, list[Slot]] = {demand.role: [] for demand in demands}
    resources: list[tuple[str, list[dict[str, float]]]] = []
    for group_index, (strategy, members) in enumerate(groups):
        resources.append((strategy, [{"CPU": cpu * len(bundle.actors), "GPU": bundle.gpus} for bundle in members]))
        for bundle_index, bundle in enumerate(members):
            for role, _ in bundle.actors:
                slots[role].append(Slot(group_index, bundle_index, cpu, bundle.gpus / len(bundle.actors)))
    return PlacementPlan(resources, slots)


def role_demands(config: RunConfig, num_gpus: float) -> list[RoleDemand]:
    """List the roles of a run on a cluster with `num_gpus` GPUs; a new role is one more entry.

    Raises ConfigError when an engine with several GPUs is to share one with a trainer.
    """
    engines, trainers = config.generation.replicas, config.training.workers
    parallel = config.generation.tensor_parallel_size
    placement = config.cluster.placement
    # Engine and trainer also share a GPU if there is only one, which has memory for both.
    one_gpu_for_all = num_gpus == engines == trainers == parallel == 1 and placement is Placement.sequential
    colocated = num_gpus > 0 and (placement is Placement.colocated or one_gpu_for_all)
    if colocated and parallel > 1:
        raise ConfigError(
            f"cluster.placement=colocated with generation.tensor_parallel_size={parallel}: "
            "an engine and a trainer share one GPU; set it to 1, or take sequential"
        )

    # Engines are spread over the nodes. Trainers exchange gradients, so they are kept together.
    gpu = float(num_gpus > 0)
    demands = [RoleDemand(Role.generator, engines, gpu * parallel, "SPREAD")]
    if config.judge.is_endpoint:
        demands.append(RoleDemand(Role.judge, 1, 0.0, "SPREAD"))
    if colocated:
        demands.append(RoleDemand(Role.trainer, trainers, gpu, "SPREAD", shares_with=Role.generator))
        if config.judge.is_own_model:
            demands.append(RoleDemand(Role.judge, config.judge.replicas, gpu, "SPREAD", shares_with=Role.generator))
        if config.reward_model.backend is Backend.vllm:
            demands.append(RoleDemand(Role.reward_scorer, 1, gpu, "SPREAD", shares_with=Role.generator))
        return demands
    if config.judge.is_own_model:
        demands.append(RoleDemand(Role.judge, config.judge.replicas, gpu, "SPREAD"))
    if config.reward_model.backend is Backend.vllm:
        demands.append(RoleDemand(Role.reward_scorer, 1, gpu, "SPREAD"))
    demands.append(RoleDemand(Role.trainer, trainers, gpu, "PACK"))
    if placement is Placement.split:
        shares_with = Role.generator if num_gpus > 0 and parallel == 1 else None
        demands.append(RoleDemand(Role.scorer, 1, gpu, "PACK", shares_with))
    return demands


def _fill_bundles(demands: list[RoleDemand]) -> list[tuple[str, list[Bundle]]]:
    """Put each actor into a bundle of its own or of the role it shares with; returns the groups."""
    groups: dict[str, list[Bundle]] = {}
    bundles_of: dict[Role, list[Bundle]] = {}
    for demand in demands:
        # A cluster that only trains has no engines.
        if demand.count == 0:
            continue
        group = groups.setdefault(demand.strategy, [])
        shared = bundles_of.get(demand.shares_with, []) if demand.shares_with is not None else []
        own: list[Bundle] = []
        for number in range(demand.count):
            # Without a partner to share with, an actor has a bundle of its own.
            if number < len(shared):
                bundle = shared[number]
            else:
                bundle = Bundle(demand.gpus)
                group.append(bundle)
            bundle.actors.append((demand.role, number))
            own.append(bundle)
        bundles_of[demand.role] = own
    return list(groups.items())


def _largest_cpu_part(node_cpus: list[float], bundles: int, actors: int) -> float:
    """Return the largest 1/k of a CPU with which all bundles of `actors` actors find room."""
    for parts in itertools.count(1):
        room = sum(int(cpus * parts) // actors for cpus in node_cpus)
        if room >= bundles:
            return int(1e4 / parts) / 1e4  # Ray counts in 1/10,000, and rounds up
        if parts > 1000:
            raise ConfigError(
                f"a cluster of {sum(node_cpus):g} CPUs has no room for {bundles * actors} actors; "
                "lower generation.replicas or training.workers"
            )
    raise AssertionError


def reserve_placement(config: RunConfig, print_line: Callable[[str], None]) -> PlacementGroups:
    """Reserve the placement groups of a run on the connected cluster.

    Waits while others use the resources, and says so with `print_line`. Raises ConfigError when
    the actors could never fit.
    """
    # Ask Ray for all groups at once.
    plan = plan_placement(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    groups = []
    for strategy, bundles in plan.groups:
        # Ray refuses a resource whose amount is 0.
        asked = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
        groups.append(placement_group(asked, strategy=strategy))

    # Wait for the groups; say so if it takes long.
    ready = [group.ready() for group in groups]
    _, waiting = ray.wait(ready, num_returns=len(ready), timeout=WAIT_NOTICE_SECONDS)
    if waiting:
        num_bundles = sum(len(bundles) for _, bundles in plan.groups)
        example = plan.groups[0][1][0]
        print_line(f"waiting for room on the cluster: {num_bundles} bundles such as {example}, of which some are taken")
        ray.wait(ready, num_returns=len(ready))
    return PlacementGroups(plan, groups)
