"""Where each actor runs: placement groups from the config and from what the nodes have.

    engines    a bundle each, spread over the nodes: one GPU for each tensor-parallel part
    trainers   a bundle each, on as few nodes as hold them
    colocated  one bundle for an engine and a trainer, half of its GPU each
    split      the worker that scores shares the first engine's GPU, or has a bundle of its own where that engine takes several

A bundle whose node is lost is placed anew by Ray once there is room; its actor starts again there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from spin.config.groups import Placement
from spin.config.run import RunConfig
from spin.errors import ConfigError

WAIT_NOTICE_SECONDS = 10.0
"""Seconds after which somebody who waits for room on the cluster is told so."""


@dataclass(frozen=True)
class PlacementPlan:
    """Bundles of resources, and which of them each actor takes what of: (group, bundle, CPUs, GPUs)."""

    groups: list[tuple[str, list[dict[str, float]]]]
    """Strategy and bundles of each placement group."""
    engines: list[tuple[int, int, float, float]]
    trainers: list[tuple[int, int, float, float]]
    scorer: tuple[int, int, float, float] | None


class PlacementGroups:
    """The placement groups of a run, once there is room for them."""

    def __init__(self, demand: PlacementPlan, groups: list[PlacementGroup]) -> None:
        self._demand, self._groups = demand, groups

    def engine(self, number: int) -> dict[str, Any]:
        """Options of a generation actor."""
        return self._options(self._demand.engines[number])

    def trainer(self, rank: int) -> dict[str, Any]:
        """Options of a training worker."""
        return self._options(self._demand.trainers[rank])

    def scorer(self) -> dict[str, Any]:
        """Options of the worker that scores beside training."""
        assert self._demand.scorer is not None
        return self._options(self._demand.scorer)

    def short(self) -> bool:
        """Whether a bundle of the engines has lost its node, and found no room elsewhere yet."""
        return ray.util.placement_group_table(self._groups[0])["state"] != "CREATED"

    def _options(self, place: tuple[int, int, float, float]) -> dict[str, Any]:
        group, bundle, cpus, gpus = place
        strategy = PlacementGroupSchedulingStrategy(
            self._groups[group], placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
        )
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": strategy}


def plan_placement(config: RunConfig, nodes: list[dict[str, float]]) -> PlacementPlan:
    """What the actors of a run ask for on nodes with these resources. Raises ConfigError when they do not fit.

    On a CPU they take turns: each asks for the largest part of one with which all fit.
    """
    engines, trainers, parallel = (
        config.generation.replicas,
        config.training.workers,
        config.generation.tensor_parallel_size,
    )
    gpus, placement = sum(node.get("GPU", 0.0) for node in nodes), config.cluster.placement
    together = gpus > 0 and (
        placement is Placement.colocated
        or (placement is Placement.sequential and gpus == engines == trainers == 1 and parallel == 1)
    )
    beside = placement is Placement.split
    shared = beside and gpus > 0 and parallel == 1  # the scorer on the first engine's GPU
    if together and parallel > 1:
        raise ConfigError(
            f"cluster.placement=colocated with generation.tensor_parallel_size={parallel}: an engine and a trainer share one GPU; set it to 1, or take sequential"
        )
    wanted = max(engines, trainers) if together else engines * parallel + trainers + (beside and not shared)
    if gpus and wanted > gpus:
        more = " + 1 that scores" if beside and not shared else ""
        raise ConfigError(
            f"{wanted:g} GPUs wanted (generation.replicas × tensor_parallel_size + training.workers{more}), {gpus:g} found; "
            "lower one of the three, or share the GPUs: cluster.placement=colocated"
        )
    bundles = max(engines, trainers) if together else engines + trainers + (beside and not shared)
    cpu = _largest_part([node.get("CPU", 0.0) for node in nodes], bundles, 2 if together or shared else 1)
    if together:
        both = [{"CPU": 2 * cpu, "GPU": 1.0}] * bundles
        return PlacementPlan(
            [("SPREAD", both)],
            [(0, i, cpu, 0.5) for i in range(engines)],
            [(0, i, cpu, 0.5) for i in range(trainers)],
            None,
        )
    gpu = float(gpus > 0)
    first = {"CPU": 2 * cpu if shared else cpu, "GPU": gpu * parallel}
    engine_bundles = [first] + [{"CPU": cpu, "GPU": gpu * parallel}] * (engines - 1)
    trainer_bundles = [{"CPU": cpu, "GPU": gpu}] * (trainers + (beside and not shared))
    scorer = None if not beside else (0, 0, cpu, 0.5) if shared else (1, trainers, cpu, gpu)
    own = [(0, i, cpu, 0.5 if shared and i == 0 else gpu * parallel) for i in range(engines)]
    return PlacementPlan(
        [("SPREAD", engine_bundles), ("PACK", trainer_bundles)],
        own,
        [(1, i, cpu, gpu) for i in range(trainers)],
        scorer,
    )


def _largest_part(cpus: list[float], bundles: int, actors: int) -> float:
    """The largest 1/k of a CPU with which bundles of `actors` actors each all find room on the nodes."""
    for parts in itertools.count(1):
        if sum(int(own * parts) // actors for own in cpus) >= bundles:
            return int(1e4 / parts) / 1e4  # Ray counts in 1/10,000, and rounds up
        if parts > 1000:
            raise ConfigError(
                f"a cluster of {sum(cpus):g} CPUs has no room for {bundles * actors} actors; lower generation.replicas or training.workers"
            )
    raise AssertionError


def reserve_placement(config: RunConfig, say: Callable[[str], None]) -> PlacementGroups:
    """Place the actors on the cluster that is connected; `say` tells who waits for room. Raises ConfigError when they could never fit."""
    demand = plan_placement(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    groups = [
        placement_group([_asked(bundle) for bundle in bundles], strategy=strategy)
        for strategy, bundles in demand.groups
    ]
    ready = [group.ready() for group in groups]
    _, waiting = ray.wait(ready, num_returns=len(ready), timeout=WAIT_NOTICE_SECONDS)
    if waiting:
        say(
            f"waiting for room on the cluster: {sum(len(bundles) for _, bundles in demand.groups)} bundles such as {demand.groups[0][1][0]}, of which some are taken"
        )
        ray.wait(ready, num_returns=len(ready))
    return PlacementGroups(demand, groups)


def _asked(bundle: dict[str, float]) -> dict[str, float]:
    """Without what is 0, which Ray refuses."""
    return {name: amount for name, amount in bundle.items() if amount}
