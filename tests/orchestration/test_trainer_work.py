"""Work of the training workers beside generation: order, errors, iterations that allow it."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from spin.config.overrides import adapt_override
from spin.config.run import CONF_DIR, RunConfig, register
from spin.config.schedule import apply_schedule
from spin.orchestration.measurement import scores_beside
from spin.orchestration.trainer_work import TrainerWork
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import plan_state


def compose_run(overrides: list[str]) -> tuple[RunConfig, list[RunConfig]]:
    """Return the config of a run and that of each iteration."""
    register()
    if not any(word.startswith("experiment=") for word in overrides):
        overrides = ["experiment=quickstart", *overrides]
    overrides = [adapt_override(word) for word in overrides]
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=overrides))
        assert isinstance(config, RunConfig)
        return config, [apply_schedule(config, index, overrides) for index in range(config.iterations)]


def test_one_piece_of_work_follows_the_other_and_none_outlives_the_context() -> None:
    work, begin, done = TrainerWork(), threading.Event(), list[str]()

    def first() -> None:
        assert begin.wait(10)
        done.append("first")

    with work.ended():
        work.start(first)
        assert done == []
        begin.set()
        work.start(lambda: done.append("second"))
        assert done[0] == "first"
    assert done == ["first", "second"]


def test_an_error_is_raised_once_where_the_workers_are_needed_next() -> None:
    work = TrainerWork()

    def fail() -> None:
        raise RuntimeError("a training worker died")

    work.start(fail)
    with pytest.raises(RuntimeError, match="a training worker died"):
        work.wait()
    work.wait()


@pytest.mark.parametrize(
    ("overrides", "beside"),
    [
        ([], [True, True, False]),
        (["stop.patience=2"], [False, False, False]),
        (["cluster.placement=split"], [False, False, False]),
        (["cluster.placement=colocated"], [False, False, False]),
        (["objective=sft"], [False, False, False]),
        (["schedule={1:[objective=sft]}"], [True, False, False]),
        (["benchmark.lm_eval.tasks=[piqa]"], [False, False, False]),
        (["experiment=grpo"], [True, True, False]),
        (["experiment=rlhf"], [False, False, False]),
    ],
)
def test_answers_are_scored_beside_an_iteration_that_begins_with_generation(
    overrides: list[str], beside: list[bool], tmp_path: Path
) -> None:
    config, iterations = compose_run([*overrides, "iterations=2", f"run_dir={tmp_path}"])
    layout = RunLayout(tmp_path)
    state = plan_state(layout, config, iterations, Ledger(layout.ledger))
    run: Any = SimpleNamespace(config=config, iteration_configs=iterations, layout=layout, state=state)
    assert [scores_beside(run, stage) for stage in (layout.start, layout.iteration(0), layout.iteration(1))] == beside
    assert not scores_beside(run, layout.baseline(0))
