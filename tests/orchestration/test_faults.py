"""Faults that a run survives: deaths, interrupts, lack of memory, faults of the disk.

Real processes on real file systems.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.chaos import Driver, rows, weights
from spin.run_dir.files import file_sha256
from tests.runs import command, heed_sigint, ledger, outcome, run

pytestmark = pytest.mark.slow
INTERRUPTED = "spin: interrupted; the same command continues the run\n"


def wait_for(run_dir: Path, unit: str, process: "subprocess.Popen[str]") -> None:
    """Until the ledger names `unit`."""
    while process.poll() is None and not any(record["unit"] == unit for record in ledger(run_dir)):
        time.sleep(0.02)
    assert process.poll() is None


def marked(mark: str) -> list[psutil.Process]:
    """The processes that were started with ``SPIN_CHAOS=mark``."""
    return Driver.marked(mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_training_saves_the_state_and_ends_in_seconds_with_one_line_and_nothing_left_running(
    tmp_path: Path, number: int
) -> None:
    run_dir, mark = tmp_path / "run", f"interrupt-{os.getpid()}-{number}"
    settings = ("warmup.limit=4000", "warmup.training.checkpoint_every=10min")
    driver = subprocess.Popen(
        command(run_dir, *settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_sigint,
        env={**os.environ, "SPIN_CHAOS": mark},
    )
    metrics = run_dir / "metrics.jsonl"
    while driver.poll() is None and not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)  # a terminal sends it to the whole group
    else:
        driver.send_signal(number)
    told, errors = driver.communicate(timeout=30)
    assert (driver.returncode, errors) == (130, INTERRUPTED)
    assert "saving the trainer's state" in told
    saved = next(record for record in ledger(run_dir) if record["unit"] == "start/trainer")
    deadline = time.time() + 10
    while (left := marked(mark)) and time.time() < deadline:
        time.sleep(0.2)
    assert left == []
    if number == signal.SIGINT:
        (step,) = saved["states"]
        assert f"goes on after step {step}" in run(run_dir, *settings, "iterations=1").stdout


def test_an_interrupt_at_once_leaves_nothing_running(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        command(tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    )
    wait_for(tmp_path / "run", "session", driver)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=30)
    assert (driver.returncode, errors) == (130, INTERRUPTED)


def disturb(to: Path, kills: int, *words: str) -> None:
    """Kill processes of small runs; nothing may be lost, doubled, altered or left over."""
    arguments = ["--kills", str(kills), "--json", str(to), *words]
    told = subprocess.run([sys.executable, "scripts/chaos.py", *arguments], capture_output=True, text=True, timeout=580)
    assert told.returncode == 0, told.stdout + told.stderr
    result = json.loads(to.read_text())
    assert len(result.pop("table")) == kills
    expected = {
        "kills": kills,
        "driver_failures": 0,
        "rows_lost": 0,
        "rows_doubled": 0,
        "weights_identical": True,
        "orphans": 0,
    }
    assert result.items() >= expected.items()


def test_a_run_whose_driver_actors_and_ray_are_killed_at_random_loses_nothing_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    victims = ["--victims", "driver", "generator", "trainer", "raylet", "gcs"]
    disturb(tmp_path / "chaos.json", 3, "--seed", "37", *victims)


def test_a_reward_model_whose_driver_or_trainer_is_killed_ends_with_the_same_bits_and_figures(tmp_path: Path) -> None:
    victims = ["--victims", "driver", "trainer"]
    disturb(tmp_path / "chaos.json", 2, "--seed", "3", "--run", "reward", *victims)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty TMPDIR. Its path is short enough for the sockets of Ray."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_deaths_of_the_raylet_and_the_gcs_cost_one_warning_each_and_the_same_process_ends_the_run_without_litter(
    undisturbed: Path, tmp_path: Path, temporary: Path
) -> None:
    run_dir = tmp_path / "run"
    driver = subprocess.Popen(command(run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(run_dir, "start/policy", driver)
    # What Ray, vLLM and torch write is in folders where no other user may look.
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in temporary.iterdir()} == {0o700}
    for unit, server in (("start/policy", "raylet"), ("iterations/000/policy", "gcs_server")):
        wait_for(run_dir, unit, driver)
        for child in psutil.Process(driver.pid).children():
            if child.name() == server and child.status() != psutil.STATUS_ZOMBIE:
                child.kill()
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert errors.splitlines() == [
        "spin: warning: Ray's raylet died; starting again from what is finished",
        "spin: warning: Ray's gcs_server died; starting again from what is finished",
    ]
    assert outcome(run_dir) == outcome(undisturbed)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("server", "seconds"), [(None, 0.3), (None, 3.0), ("gcs_server", 0.0), ("raylet", 0.0), ("raylet", 1.0)]
)
def test_sigterm_to_the_whole_process_group_ends_the_run_at_once_at_any_moment_of_its_start(
    tmp_path: Path, server: str | None, seconds: float
) -> None:
    """As timeout, systemd and schedulers send it: Ray's servers get it too, and die."""
    mark = f"group-{os.getpid()}-{server}-{seconds}"
    driver = subprocess.Popen(
        command(tmp_path / "run"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "SPIN_CHAOS": mark},
    )
    while server is not None and server not in {child.name() for child in psutil.Process(driver.pid).children()}:
        assert driver.poll() is None
        time.sleep(0.02)
    time.sleep(seconds)
    os.killpg(driver.pid, signal.SIGTERM)
    # For the port of a GCS that dies in its first milliseconds, Ray waits 30 s inside of C++.
    _, errors = driver.communicate(timeout=60)
    # Before main is reached, Python itself ends the process. For some tenths of a second at its
    # start, Ray's C++ core handles SIGTERM: it may abort the process before Python handles it.
    accepted = [(130, INTERRUPTED), (-signal.SIGTERM, "")]
    if server is not None:
        accepted.append((-signal.SIGABRT, ""))
    assert (driver.returncode, errors) in accepted
    deadline = time.time() + 15
    while (left := marked(mark)) and time.time() < deadline:
        time.sleep(0.2)
    assert left == []


def test_two_drivers_on_one_run_directory_the_second_is_refused_and_all_ports_are_on_loopback(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    driver = Driver(run_dir, log)
    while driver.process.poll() is None and "started in" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.1)
    second = subprocess.run(command(run_dir), capture_output=True, text=True, timeout=100)
    assert second.returncode == 2
    assert f"is in use by another spin run (pid {driver.process.pid})" in second.stderr
    status = subprocess.run(
        [sys.executable, "-c", "from spin.cli.main import main; main()", "status", f"run_dir={run_dir}"],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert f"running (pid {driver.process.pid})" in status
    listening = [
        c.laddr.ip
        for process in driver.processes()
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    driver.kill("driver")
    assert driver.orphans() == []


HUNGRY = """
import os, ray, torch
from pathlib import Path

def in_training():
    # Before Ray starts, the driver tries the loss on two made-up pairs.
    return ray.is_initialized()

def once(logps, **parameters):
    flag = Path(os.environ["HUNGRY_FLAG"])
    if in_training() and not flag.exists():
        flag.touch()
        torch.empty(1 << 50)  # a petabyte: torch's own refusal
    return torch.nn.functional.softplus(-logps.margin)

def always(logps, **parameters):
    if in_training():
        torch.empty(1 << 50)
    return torch.nn.functional.softplus(-logps.margin)

def deadly(logps, **parameters):
    if in_training():
        os.kill(os.getpid(), 9)
    return torch.nn.functional.softplus(-logps.margin)
"""


@pytest.fixture(scope="module")
def trained(undisturbed: Path) -> list[str]:
    """Settings of a run of one iteration from the undisturbed run's start."""
    return [f"model.path={undisturbed}/start/policy", "warmup.enabled=false", "iterations=1", "objective=custom"]


@pytest.mark.parametrize(
    ("function", "more", "code", "told"),
    [
        ("once", [], 0, "does not fit into memory; once more with half the token budget"),
        (
            "always",
            ["training.micro_batch_tokens=512"],
            1,
            "does not fit into memory; lower training.micro_batch_tokens (now 512)",
        ),
        ("deadly", [], 1, "training workers died 4 times in a row"),
    ],
)
def test_lack_of_memory_and_deaths_without_end(
    trained: list[str], tmp_path: Path, function: str, more: list[str], code: int, told: str
) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    done = subprocess.run(
        command(tmp_path / "run", *trained, f"objective._target_=hungry.{function}", *more),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}", "HUNGRY_FLAG": str(tmp_path / "flag")},
    )
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
    budgets = [
        (record["tokens"], record["automatic"])
        for record in ledger(tmp_path / "run")
        if record["unit"] == "micro_batch"
    ]
    if function == "once":
        assert budgets == [(budgets[0][0], True), (budgets[0][0] // 2, False)]
    else:
        assert done.stderr.count("\n") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of the test's own, of 256 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False, capture_output=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_in_each_stage_is_said_in_one_line_and_the_run_goes_on_once_there_is_room(
    undisturbed: Path, disk: Path
) -> None:
    run_dir, ballast = disk / "run", disk / "ballast"
    stages = [
        "session",
        "start/benchmark",
        "iterations/000/samples/2",
        "iterations/000/pairs/2",
        "iterations/000/policy",
    ]
    # No room for what comes next: state of the warm start, samples, pairs, policy, benchmark.
    for unit in stages:
        driver = subprocess.Popen(command(run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        filler = threading.Thread(target=fill, args=(run_dir, unit, driver, ballast))
        filler.start()
        _, errors = driver.communicate(timeout=120)
        filler.join()
        assert driver.returncode == 1, (unit, errors)
        assert "No space left on device" in errors, unit
        assert "free some space" in errors
        assert errors.count("\n") == 1, errors
        ballast.unlink()
    run(run_dir)
    assert outcome(run_dir) == outcome(undisturbed)


def fill(run_dir: Path, unit: str, driver: "subprocess.Popen[str]", ballast: Path) -> None:
    """Take all the room that is left as soon as the ledger names `unit`."""
    wait_for(run_dir, unit, driver)
    with ballast.open("wb", buffering=0) as handle:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    handle.write(b"\0" * size)
            except OSError:
                pass


def test_a_read_only_disk_is_refused_in_one_line(undisturbed: Path, disk: Path) -> None:
    shutil.copytree(undisturbed, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = subprocess.run(command(disk / "run", "iterations=3"), capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be written (Read-only file system)" in done.stderr


def cut_ledger(run_dir: Path, unit: str) -> None:
    """Forget `unit` and all that came after."""
    path = run_dir / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line)["unit"] == unit)
    path.write_text("".join(lines[:at]))


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_what_was_lost_or_altered_in_an_unfinished_iteration_is_named_and_made_again_with_the_same_bits(
    undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    cut_ledger(run_dir, "iterations/001/policy")
    shutil.rmtree(run_dir / "iterations" / "001" / "policy")
    alter(run_dir / "iterations" / "001" / "samples" / "shard-00000.parquet")
    (run_dir / "iterations" / "001" / "pairs" / "shard-00001.parquet").unlink()
    alter(run_dir / "iterations" / "000" / "benchmark.json")
    (run_dir / "prompts" / "train.parquet").unlink()
    (run_dir / "config.yaml").unlink()
    (run_dir / "start" / "heldout" / "judged.parquet").unlink()
    with (run_dir / "metrics.jsonl").open("a") as handle:
        handle.write('{"unit": "iterations/001/po')
    told = run(run_dir).stdout
    for name, problem in {
        "samples/shard-00000.parquet": "was altered",
        "pairs/shard-00001.parquet": "is gone",
        "000/benchmark.json": "was altered",
        "train.parquet": "is gone",
        "judged.parquet": "is gone",
    }.items():
        assert any(line.startswith("warning: ") and name in line and problem in line for line in told.splitlines()), (
            name,
            told,
        )
    assert outcome(run_dir) == outcome(undisturbed)
    assert (run_dir / "config.yaml").is_file()
    assert rows(run_dir) == rows(undisturbed)


def test_the_last_policy_and_a_saved_state_are_made_again_when_they_were_altered(
    undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    alter(run_dir / "iterations" / "001" / "policy" / "model.safetensors")
    cut_ledger(run_dir, "seconds")
    with (run_dir / "ledger.jsonl").open("a") as handle:  # and a state that is not there, of the same rows or not
        handle.write(
            json.dumps(
                {
                    "unit": "iterations/001/trainer",
                    "states": {"2": {"digest": "0" * 64, "source": "other", "chunks": 3}},
                }
            )
            + "\n"
        )
    lines = (run_dir / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "ledger.jsonl").write_text("".join(line for line in lines if '"iterations/001/benchmark"' not in line))
    told = run(run_dir).stdout
    assert "policy was altered: digest" in told
    assert "it is trained again" in told
    assert outcome(run_dir) == outcome(undisturbed)
    assert weights(run_dir) == weights(undisturbed)


def test_a_finished_run_whose_last_policy_was_deleted_is_not_complete_and_trains_it_again(
    undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    shutil.rmtree(run_dir / "iterations" / "001" / "policy")
    told = run(run_dir).stdout
    assert "the run is complete" not in told
    assert "001/policy is gone; it is trained again" in told
    assert outcome(run_dir) == outcome(undisturbed)
    # So is one whose benchmark was altered, and the table says so until it is made again.
    benchmark = run_dir / "iterations" / "001" / "benchmark.json"
    benchmark.write_text("{}")
    told = run(run_dir).stdout
    assert "001/benchmark.json was altered since it was finished; it is made again" in told
    assert outcome(run_dir) == outcome(undisturbed)
    assert "the run is complete" in run(run_dir).stdout


BROKEN = {
    "a policy that a later iteration was made with": (
        "iterations/000/policy/model.safetensors",
        alter,
        1,
        "iterations/000/policy was altered",
    ),
    "a promoted policy that is gone": ("iterations/000/policy", shutil.rmtree, 1, "iterations/000/policy is gone"),
    "the built-in model": ("model/model.safetensors", alter, 1, "model was altered"),
    "a line in the ledger's middle": (
        "ledger.jsonl",
        lambda path: path.write_bytes(b"rubbish\n" + path.read_bytes()),
        2,
        "ledger.jsonl:1 is no ledger line",
    ),
    "no ledger": ("ledger.jsonl", Path.unlink, 2, "is no run (no ledger) and not empty"),
    "an empty ledger": ("ledger.jsonl", lambda path: path.write_bytes(b""), 2, "is no run (no ledger) and not empty"),
    "a file in the place of a folder": (
        "iterations",
        lambda path: (shutil.rmtree(path), path.write_text("")),
        1,
        "policy is gone",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_directory_is_refused_in_one_line_and_nothing_in_it_changes(
    undisturbed: Path, tmp_path: Path, name: str
) -> None:
    place, verify_file, code, told = BROKEN[name]
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    verify_file(run_dir / place)
    before = finished_files(run_dir)
    done = subprocess.run(command(run_dir, "iterations=3"), capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert told in done.stderr
    assert finished_files(run_dir) == before


def finished_files(run_dir: Path) -> dict[str, str]:
    """Name and digest of everything but what a session says of itself."""
    free = ("lock", "error.json", "native.log", "ledger.jsonl", "metrics.jsonl")
    found = {
        str(path.relative_to(run_dir)): file_sha256(path)
        for path in run_dir.rglob("*")
        if path.is_file() and path.name not in free
    }
    kept = (
        [line for line in (run_dir / "ledger.jsonl").read_text().splitlines() if '"session"' not in line]
        if (run_dir / "ledger.jsonl").exists()
        else []
    )
    return found | {"ledger.jsonl": "\n".join(kept)}


def test_no_secret_of_the_environment_reaches_the_run_directory(tmp_path: Path) -> None:
    secret = "hf_SECRETSECRETSECRET"
    environment = {**os.environ, "HF_TOKEN": secret, "WANDB_API_KEY": secret}
    done = subprocess.run(
        command(tmp_path / "run", "iterations=1"), capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    assert [
        path for path in (tmp_path / "run").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ] == []
