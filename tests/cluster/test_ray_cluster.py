"""Several nodes: real Ray clusters of several processes on one machine, joined by address."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from spin.cluster.placement import PlacementGroups, PlacementPlan, Role, Slot, plan_placement
from spin.cluster.ray_cluster import CLIENT_TRIES, _join
from spin.config.cluster import ClusterConfig, Placement
from spin.config.groups import GenerationConfig
from spin.config.reward_model import Backend, RewardModelConfig
from spin.config.run import RunConfig
from spin.config.training import TrainingConfig
from spin.errors import ConfigError
from tests.runs import command, ledger, outcome, run

STEPS = ["training.batch_size=8", "training.checkpoint_every=1"]
GPU_NODE = {"CPU": 32.0, "GPU": 8.0}


def config(placement: Placement, replicas: int = 1, parallel: int = 1, workers: int = 1) -> RunConfig:
    generation, training = (
        GenerationConfig(replicas=replicas, tensor_parallel_size=parallel),
        TrainingConfig(workers=workers),
    )
    return RunConfig(
        run_dir="runs/a", generation=generation, training=training, cluster=ClusterConfig(placement=placement)
    )


def gpus_of(plan: PlacementPlan, *roles: Role) -> list[float]:
    return [slot.gpus for role in roles for slot in plan.slots[role]]


def test_engines_and_trainers_have_gpus_of_their_own_unless_they_take_turns() -> None:
    apart = plan_placement(config(Placement.sequential, replicas=2, parallel=2, workers=4), [GPU_NODE])
    assert [[bundle["GPU"] for bundle in bundles] for _, bundles in apart.groups] == [[2.0, 2.0], [1.0] * 4]
    assert gpus_of(apart, Role.generator, Role.trainer) == [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    together = plan_placement(config(Placement.colocated, replicas=8, workers=8), [GPU_NODE])
    assert [[bundle["GPU"] for bundle in bundles] for _, bundles in together.groups] == [[1.0] * 8]
    assert together.slots[Role.generator] == together.slots[Role.trainer]
    assert [(slot.bundle, slot.gpus) for slot in together.slots[Role.trainer]] == [(i, 0.5) for i in range(8)]
    assert PlacementGroups(together, []).uses_gpus(Role.generator)
    on_cpus = plan_placement(config(Placement.sequential), [{"CPU": 8.0}])
    assert not PlacementGroups(on_cpus, []).uses_gpus(Role.generator)
    one = plan_placement(config(Placement.sequential), [{"CPU": 8.0, "GPU": 1.0}])
    assert gpus_of(one, Role.generator, Role.trainer) == [0.5, 0.5]


def test_colocated_groups_of_unequal_size_share_as_many_bundles_as_both_have() -> None:
    plan = plan_placement(config(Placement.colocated, replicas=1, workers=3), [GPU_NODE])
    [(strategy, bundles)] = plan.groups
    assert (strategy, [bundle["GPU"] for bundle in bundles]) == ("SPREAD", [1.0, 1.0, 1.0])
    assert gpus_of(plan, Role.generator, Role.trainer) == [0.5, 0.5, 1.0, 1.0]


def test_the_scorer_shares_the_first_engines_gpu_or_has_one_where_that_has_several() -> None:
    shared = plan_placement(config(Placement.split, replicas=2, workers=2), [GPU_NODE])
    assert gpus_of(shared, Role.generator, Role.trainer) == [0.5, 1.0, 1.0, 1.0]
    assert shared.slots[Role.scorer] == [Slot(group=0, bundle=0, cpus=1.0, gpus=0.5)]
    apart = plan_placement(config(Placement.split, parallel=2), [GPU_NODE])
    assert apart.slots[Role.scorer] == [Slot(group=1, bundle=1, cpus=1.0, gpus=1.0)]
    assert [[bundle["GPU"] for bundle in bundles] for _, bundles in apart.groups] == [[2.0], [1.0, 1.0]]


def test_the_engine_of_a_reward_model_has_a_gpu_or_shares_that_of_the_first_engine() -> None:
    by_engine = RewardModelConfig(path="a/b", backend=Backend.vllm)
    apart = plan_placement(replace(config(Placement.sequential), reward_model=by_engine), [GPU_NODE])
    assert gpus_of(apart, Role.generator, Role.reward_scorer, Role.trainer) == [1.0, 1.0, 1.0]
    together = plan_placement(replace(config(Placement.colocated), reward_model=by_engine), [GPU_NODE])
    assert together.slots[Role.reward_scorer] == together.slots[Role.generator]
    assert gpus_of(together, Role.reward_scorer) == [pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("placement", "replicas", "parallel"),
    [(Placement.sequential, 8, 1), (Placement.split, 3, 2), (Placement.colocated, 1, 2)],
)
def test_what_does_not_fit_is_refused_with_the_way_out(placement: Placement, replicas: int, parallel: int) -> None:
    with pytest.raises(ConfigError, match="cluster.placement=colocated"):
        plan_placement(config(placement, replicas, parallel, workers=2), [GPU_NODE])


def test_actors_on_cpus_take_the_largest_part_of_one_with_which_all_find_room() -> None:
    def part(cpus: list[float], replicas: int, placement: Placement = Placement.sequential) -> float:
        return plan_placement(config(placement, replicas), [{"CPU": own} for own in cpus]).slots[Role.generator][0].cpus

    assert part([2.0], 1) == 1.0
    assert part([2.0], 2) == 0.5
    assert part([1.0] * 4, 4) == 0.5  # 4/5 would leave no node with room for the fifth
    assert part([1.0], 2) == 0.3333
    assert part([2.0], 1, Placement.split) == 0.5


def test_a_cluster_that_does_not_answer_and_a_url_that_nobody_knows_are_refused_in_one_line(tmp_path: Path) -> None:
    for words, told in (
        (["cluster.address=127.0.0.1:1"], "no Ray cluster answers"),
        (["run_dir=nowhere://bucket/run"], "Protocol not known: nowhere"),
    ):
        done = subprocess.run([*command(tmp_path / "run"), *words], capture_output=True, text=True, timeout=200)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert told in done.stderr


@pytest.mark.parametrize(("address", "tries"), [("ray://head:10001", CLIENT_TRIES), ("head:6379", 1)])
def test_the_server_of_ray_client_is_asked_again_when_its_new_process_crashes(
    address: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(address: str, **_: object) -> None:
        asked.append(address)
        raise ConnectionAbortedError("Starting Ray client server failed")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match="Starting Ray client server failed"):
        _join(address)
    assert asked == [address] * tries


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one node."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    run(run_dir, *STEPS)
    return run_dir


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """What is started in it ends with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()


@pytest.fixture
def client_port() -> int:
    """Where the head's server of Ray Client listens; Ray's workers take 10,002 to 19,999."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, client_port: int) -> Iterator[Cluster]:
    """The head alone, which takes no actors."""
    for name, value in {
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": client_port},
    )
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", client_port), timeout=1):
            break
        time.sleep(0.1)
    yield found
    found.shutdown()


def actor(node: object, title: str) -> psutil.Process | None:
    """The process of an actor that runs on a node."""
    # One process of each kind but the workers'.
    [info] = node.all_processes["raylet"]  # type: ignore[attr-defined]
    raylet = info.process.pid
    return next(
        (child for child in psutil.Process(raylet).children() if " ".join(child.cmdline()).startswith(title)), None
    )


def wait(done: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    start = time.monotonic()
    while not done():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() - start < 300
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_on_four_nodes_gives_the_pairs_and_weights_of_one_on_one(
    alone: Path, cluster: Cluster, tmp_path: Path
) -> None:
    for _ in range(4):
        cluster.add_node(num_cpus=1)
    run(tmp_path / "run", *STEPS, f"cluster.address={cluster.address}", "generation.replicas=3")
    assert outcome(tmp_path / "run") == outcome(alone)


@pytest.mark.slow
def test_of_two_nodes_one_is_lost_in_generation_and_one_in_training_and_nothing_else_is(
    alone: Path, cluster: Cluster, client_port: int, drivers: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The driver is a client of the cluster, no part of it."""
    run_dir, nodes = tmp_path / "run", [cluster.add_node(num_cpus=2) for _ in range(2)]
    words = command(run_dir, *STEPS, f"cluster.address=ray://127.0.0.1:{client_port}", "generation.replicas=2")
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    drivers.append(driver)

    def units(name: str) -> int:
        return len([record for record in ledger(run_dir) if record["unit"].startswith(name)])

    wait(lambda: units("start/benchmark") >= 1, driver)
    lost = next(node for node in nodes if actor(node, "ray::TrainingWorker") is None)
    engine = actor(lost, "ray::Generator")
    assert engine is not None
    engine.send_signal(signal.SIGSTOP)  # a shard is in flight on it
    wait(lambda: units("iterations/000/samples/") >= 2, driver)
    cluster.remove_node(lost, allow_graceful=False)
    nodes = [*(node for node in nodes if node is not lost), cluster.add_node(num_cpus=2)]

    wait(lambda: units("iterations/001/trainer") >= 1, driver)
    lost = next(node for node in nodes if actor(node, "ray::TrainingWorker") is not None)
    trainer = actor(lost, "ray::TrainingWorker")
    assert trainer is not None
    trainer.send_signal(signal.SIGSTOP)
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=2)  # an engine may have taken the room that the first one left
    told, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert "a training worker died" in told
    assert "iteration 1 train goes on after step" in told
    assert outcome(run_dir) == outcome(alone)


@pytest.mark.slow
def test_head_and_worker_are_started_by_hand_with_a_secret_and_without_a_common_disk_a_url_is_the_run_directory(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The worker lives in a mount namespace in which the folder is empty."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    port, script = 6411, str(Path(__file__).parents[2] / "scripts" / "cluster.sh")
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"', "sh", str(hidden)]
    if subprocess.run([*apart, "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not to be had here")
    ours = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | {
        "HOME": str(tmp_path),
        # cluster.sh takes the first ray that it finds.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    started = []

    def start(prefix: list[str], *words: str) -> None:
        line = [*prefix, "bash", script, *words, "--num-cpus=1", "--block"]
        started.append(
            subprocess.Popen(
                line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=ours
            )
        )

    def spin(home: Path, address: str) -> subprocess.CompletedProcess[str]:
        words = command(hidden / "run", f"cluster.address={address}")
        return subprocess.run(words, capture_output=True, text=True, timeout=200, env={**ours, "HOME": str(home)})

    try:
        start([], "head", str(port), "--include-dashboard=false")
        token = tmp_path / ".ray" / "auth_token"
        while not token.is_file() or not token.read_text():
            assert started[0].poll() is None
            time.sleep(0.1)
        start(apart, "worker", f"127.0.0.1:{port}")
        code = (
            f"import ray, time\nray.init('127.0.0.1:{port}')\n"
            "while len([n for n in ray.nodes() if n['Alive']]) < 2: time.sleep(0.2)"
        )
        while (
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, env={**ours, "RAY_AUTH_MODE": "token"}, timeout=100
            ).returncode
            != 0
        ):
            assert [process.poll() for process in started] == [None, None]
            time.sleep(1)
        # `auto` finds the address in the folder of cluster.sh, and the token of the head's user.
        for home, address, told in (
            (tmp_path, "auto", f"does not see {hidden / 'run'}"),
            (tmp_path / "stranger", f"127.0.0.1:{port}", "where the cluster wants a token"),
        ):
            done = spin(home, address)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert told in done.stderr
        words = command(tmp_path, f"run_dir=file://{tmp_path}/bucket/run", f"cluster.address=127.0.0.1:{port}")
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=300, env={**ours, "SPIN_SCRATCH": str(hidden)}
        )
        assert done.returncode == 0, done.stderr
        assert outcome(tmp_path / "bucket" / "run") == outcome(undisturbed)
        # The second machine took part: it made the samples, or read them for its trainer.
        [folder] = hidden.glob("run-*")
        assert len(list(folder.glob("iterations/001/samples/*.parquet"))) == 3
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
