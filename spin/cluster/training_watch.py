"""Follow a training stage from the driver: its reports, its end, and the work beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from spin.cluster.recovery import LOST, to_workers_lost
from spin.training.job import TrainingJob

SAVE_CHECK_SECONDS = 1.0
"""Seconds between two looks at whether the trainers' state is to be saved."""

OTHER_RANK_SECONDS = 5.0
"""Seconds that another rank has to report its death, after one rank has failed."""


class BackgroundWork(Protocol):
    """Work beside training, advanced by the loop that waits for the trainers."""

    def pending(self) -> list[Any]:
        """Return the remote calls to wait for."""

    def collect(self, ready: Any) -> None:
        """Take the result of one of these calls, which is ready."""


def follow_training(
    trainers: list[Any], job: TrainingJob, background: BackgroundWork | None, save_wanted: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Run one training stage on all trainers; yields the events of rank 0, the outcome last.

    Args:
        trainers: the training workers by rank.
        job: the stage.
        background: work to advance meanwhile.
        save_wanted: once it returns True, the trainers save their state after the current step.

    Raises:
        WorkersLost: when a trainer died or ran out of memory.
    """
    # Start all ranks. Rank 0 reports its steps through `watch`.
    rank_0, *other_ranks = [trainer.train.remote(job) for trainer in trainers]
    next_events = trainers[0].watch.remote()
    save_call = None
    try:
        while True:
            # Wait for a report, the end of a rank, or background work.
            background_calls = background.pending() if background is not None else []
            done, _ = ray.wait(
                [next_events, *other_ranks, *background_calls], num_returns=1, timeout=SAVE_CHECK_SECONDS
            )
            # The user interrupted the run: save once.
            if save_wanted() and save_call is None:
                save_call = trainers[0].save.remote()
            if not done:
                continue
            [ready] = done

            # Advance the background work.
            if background is not None and ready in background_calls:
                background.collect(ready)
                continue

            # Another rank ended before rank 0. Its error must be raised here, because rank 0 would
            # wait for that rank.
            if ready != next_events:
                ray.get(ready)
                other_ranks.remove(ready)
                continue

            # Pass the reports on; None ends them.
            events = ray.get(next_events)
            for event in events:
                if event is not None:
                    yield event
            if events[-1] is None:
                break
            next_events = trainers[0].watch.remote()
        outcome, *_ = ray.get([rank_0, *other_ranks])
        yield outcome
    except LOST as error:
        raise to_workers_lost(error) from error
    except RayTaskError:
        _raise_if_lost(other_ranks)
        raise


def _raise_if_lost(calls: list[Any]) -> None:
    """Raise WorkersLost if one of the ranks died: the error at hand may only be its consequence."""
    for call in calls:
        try:
            ray.get(call, timeout=OTHER_RANK_SECONDS)
        except RayActorError as error:
            raise to_workers_lost(error) from error
        except (GetTimeoutError, RayTaskError):
            continue
