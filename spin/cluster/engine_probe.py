"""Ask every engine for short answers under a policy, and find out which engines are there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from spin.cluster.placement import WAIT_NOTICE_SECONDS
from spin.cluster.recovery import MAX_ATTEMPTS, too_many_deaths
from spin.models.policy import Policy

ABSENT_SECONDS = 120
"""Seconds to wait for a missing engine after the first has answered; a GPU start takes about 60."""

ProbeAnswers = list[tuple[list[int], float]]
"""Token ids and log-probability (nats, summed) of the answer to each prompt."""


def probe_engines(
    engines: list[Any],
    policy: Policy,
    prompts: list[list[int]],
    lacks_room: Callable[[], bool],
    print_line: Callable[[str], None],
) -> dict[int, ProbeAnswers]:
    """Return the answers of each engine that is there, by its number.

    An engine that died is restarted by Ray and asked again. One that does not answer within
    ABSENT_SECONDS of the first answer, or for which the cluster has no room, is left out.

    Args:
        engines: the generation actors.
        policy: the weights to answer with.
        prompts: token ids of each prompt.
        lacks_room: tells whether the cluster has no room for a missing engine.
        print_line: receives a warning for each engine that is left out.

    Raises:
        RuntimeError: when an engine died MAX_ATTEMPTS times.
    """
    # One call for each engine: a probe, or a ping of an engine that restarts.
    answers: dict[int, ProbeAnswers] = {}
    deaths = [0] * len(engines)
    calls = {engine.probe.remote(policy, prompts): number for number, engine in enumerate(engines)}
    deadline = math.inf
    while calls and time.monotonic() < deadline:
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=WAIT_NOTICE_SECONDS)
        if not ready:
            if answers and lacks_room():
                break  # it is unknown for how long the cluster lacks room
            continue

        # Ping an engine that died: Ray repeats the call until the engine is back.
        number = calls.pop(ready[0])
        try:
            found = ray.get(ready[0])
        except RayActorError as error:
            deaths[number] += 1
            if deaths[number] == MAX_ATTEMPTS:
                raise too_many_deaths(error) from error
            calls[engines[number].ping.remote()] = number
            continue
        # The result of a ping is None: probe again.
        if found is None:
            calls[engines[number].probe.remote(policy, prompts)] = number
            continue
        answers[number] = found
        deadline = min(deadline, time.monotonic() + ABSENT_SECONDS)

    # Go on without the engines that have not answered.
    for number in calls.values():
        print_line(
            f"warning: engine {number} does not answer (its node may be gone); "
            f"going on with {len(answers)} of {len(engines)}"
        )
    return answers
