"""The tasks of a pool: which actor gets how many, and what becomes of those of a dead actor."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from spin.cluster.task_pool import TaskPool

DYING_ACTOR = """
import json, os, sys
from pathlib import Path
from spin.cluster.environment import prepare_ray
prepare_ray(None)  # before Ray is imported
import ray
from spin.cluster.task_pool import TaskPool

folder = Path(sys.argv[1])

@ray.remote(max_restarts=-1, max_task_retries=0, max_concurrency=3)
class Worker:
    def work(self, task):
        # It dies once, with both tasks in flight.
        (folder / f"{task}-{os.getpid()}").touch()
        mark = folder / "died"
        if not mark.exists():
            while len(list(folder.iterdir())) < 2:
                pass
            mark.touch()
            os._exit(1)
        return task

    @ray.method(max_task_retries=-1)
    def ping(self):
        pass

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
pool = TaskPool([Worker.remote()], lambda worker, task: worker.work.remote(task), None, places=2)
for task in range(4):
    pool.add(task)
losses, done = [], []
while pool.busy:
    [ready], _ = ray.wait(pool.pending, num_returns=1)
    result = pool.collect(ready)
    losses.append(pool._losses)
    if result is not None:
        done.append(result)
ray.shutdown()
print(json.dumps([max(losses), sorted(done)]))
"""


def begin(number_of_actors: int, places: int, tasks: int) -> tuple[TaskPool, Counter[str]]:
    """Return a pool that has got its tasks, and how many each actor has; no call ever ends."""
    started: Counter[str] = Counter()
    names = ["first", "second", "third"][:number_of_actors]

    def call(actor: str, task: int) -> int:
        started[actor] += 1
        return task

    pool = TaskPool(names, call, None, places)
    for task in range(tasks):
        pool.add(task)
    return pool, started


@pytest.mark.parametrize(
    ("actors", "places", "tasks", "expected"),
    [
        (1, 2, 3, [2]),
        (2, 1, 5, [1, 1]),
        (2, 2, 2, [1, 1]),
        # The third task waits for the first actor that is idle.
        (2, 2, 3, [1, 1]),
        (2, 2, 4, [2, 2]),
        (3, 4, 7, [2, 2, 2]),
        (3, 4, 50, [4, 4, 4]),
    ],
)
def test_tasks_are_spread_in_full_rounds(actors: int, places: int, tasks: int, expected: list[int]) -> None:
    _, started = begin(actors, places, tasks)
    assert sorted(started.values()) == expected


@pytest.mark.slow
def test_an_actor_that_dies_with_two_tasks_counts_once_and_both_are_done_again(tmp_path: Path) -> None:
    # In a process of its own, because the settings of Ray stay in the environment.
    words = [sys.executable, "-c", DYING_ACTOR, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    losses, results = json.loads(done.stdout.splitlines()[-1])
    assert losses == 1
    assert results == [[task, task] for task in range(4)]
    started = Counter(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert started == {"died": 1, "0": 2, "1": 2, "2": 1, "3": 1}
