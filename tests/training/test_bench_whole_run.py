"""The comparison of a whole run with a script: its stages, its phases and its ratios."""

import os
import sys
import time
from pathlib import Path

import pytest

from scripts.bench.process_tree import Usage, measure_command
from scripts.bench.whole_run import list_stages, name_role, split_phases, summarise


def test_the_script_has_a_process_for_each_stage_and_each_iteration_begins_with_the_policy_before_it() -> None:
    folder, work = Path("rows"), Path("work")
    stages = list_stages(folder, work, Path("start"), [2, 5], 2)
    found = []
    for words in stages:
        named = dict(zip(words[1::2], words[2::2], strict=False))
        found.append((words[0], named["--policy"], named["--rows"], named["--out"]))
    train, heldout = "rows/train.json", "rows/heldout.json"
    assert found == [
        ("answer", "start", heldout, "work/start-answers.json"),
        ("score", "start", heldout, "work/start-nll.json"),
        ("generate", "start", train, "work/0-generated.json"),
        ("train", "start", train, "work/0-policy"),
        ("answer", "work/0-policy", heldout, "work/0-answers.json"),
        ("score", "work/0-policy", heldout, "work/0-nll.json"),
        ("generate", "work/0-policy", train, "work/1-generated.json"),
        ("train", "work/0-policy", train, "work/1-policy"),
        ("answer", "work/1-policy", heldout, "work/1-answers.json"),
        ("score", "work/1-policy", heldout, "work/1-nll.json"),
    ]
    assert stages[3][7:9] == ["--answers", "work/0-generated.json"]
    assert all(words[-3:] == ["--stop-ids", "2", "5"] for words in stages)


def test_cpu_seconds_are_split_by_phase_and_role() -> None:
    driver, engine = (1, 0), (2, 0)
    usage = Usage(
        seconds=40.0,
        times=[100.0, 110.0, 120.0, 130.0, 140.0],
        samples=[
            {driver: 0.5},
            {driver: 4.0, engine: 1.0},
            {driver: 5.0, engine: 9.0},
            {driver: 6.0, engine: 12.0},
            {driver: 8.0, engine: 12.0},
        ],
        commands={driver: "python -c from spin.cli.main import main", engine: "ray::Generator.generate"},
    )
    # The start-up ends at 110 s, the stages end at 120 and 130 s, and the rest is the end.
    assert split_phases(usage, [("train", 122.0, 130.0), ("generate", 110.0, 120.0)]) == {
        "start-up": {"driver": 4.0, "engine": 1.0},
        "generate": {"driver": 1.0, "engine": 8.0},
        "train": {"driver": 1.0, "engine": 3.0},
        "end": {"driver": 2.0, "engine": 0.0},
    }
    assert usage.cpu_seconds == 20.0


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray/core/src/ray/raylet/raylet --python_worker_command=ray/default_worker.py", "raylet"),
        ("python ray/_private/workers/default_worker.py --node-ip-address=127.0.0.1", "idle workers"),
        ("ray::TrainingWorker.watch", "trainer"),
        ("sh -c true", "other"),
    ],
)
def test_a_process_has_the_role_that_its_command_line_names(command: str, role: str) -> None:
    assert name_role(command) == role


def test_ratios_are_those_of_the_sums_and_of_each_draw() -> None:
    draws = [
        {"spin": {"cpu_seconds": 40.0, "seconds": 30.0}, "script": {"cpu_seconds": 100.0, "seconds": 60.0}},
        {"spin": {"cpu_seconds": 50.0, "seconds": 90.0}, "script": {"cpu_seconds": 200.0, "seconds": 60.0}},
    ]
    assert summarise(draws) == {
        "cpu_seconds": 0.3,
        "cpu_seconds_by_draw": [0.4, 0.25],
        "seconds": 1.0,
        "seconds_by_draw": [0.5, 1.5],
    }


BUSY = "import time\nwhile time.process_time() < 0.5: pass\n"


def test_the_cpu_time_of_a_daemon_counts(tmp_path: Path) -> None:
    # The command ends at once, and its child, in a session of its own, goes on as an orphan.
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BUSY!r}], start_new_session=True)"
    before = time.process_time()
    usage = measure_command([sys.executable, "-c", program], os.environ, tmp_path / "log.txt")
    assert usage.cpu_seconds >= 0.5
    assert time.process_time() - before < 0.5


def test_a_command_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such stage"):
        measure_command([sys.executable, "-c", "raise SystemExit('no such stage')"], os.environ, tmp_path / "log.txt")
