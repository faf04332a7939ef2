"""A run directory at a URL: uploads, downloads, locks; and real runs."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from spin.benchmark.best_policy import publish_best
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.errors import ConfigError
from spin.models.policy import policy_digest
from spin.orchestration.orchestrator import tracked
from spin.report.console import Reporter
from spin.run_dir import remote as remote_module
from spin.run_dir.files import write_text
from spin.run_dir.ledger import Ledger
from spin.run_dir.lock import hold_remote_lock, locked
from spin.run_dir.paths import RunLayout
from spin.run_dir.remote import Remote
from spin.run_dir.store import RunStore, open_store
from tests.runs import command, ledger, outcome, run


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the local folders."""
    monkeypatch.setenv("SPIN_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a disk, and of a store that knows no folders."""
    yield f"file://{tmp_path}/bucket/run" if request.param == "file" else "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def other_machine(store: RunStore, folder: Path) -> RunStore:
    """Return the store of the same URL with a local folder of its own."""
    assert store.remote is not None
    return RunStore(folder.resolve(), Remote(store.remote.url, folder.resolve()))


def publish_text(store: RunStore, path: Path, text: str) -> None:
    write_text(path, text)
    store.publish(path)


def fetch_small_files(store: RunStore) -> None:
    assert store.remote is not None
    store.remote.fetch_small_files()


def test_a_finished_file_is_there_for_another_machine_and_what_changed_since_is_fetched_again(
    scratch: Path, url: str, tmp_path: Path
) -> None:
    here = open_store(url)
    there = other_machine(here, tmp_path / "there")
    shard = here.root / "iterations" / "000" / "samples" / "shard-00000.parquet"
    same = there.root / shard.relative_to(here.root)
    for text in ("first", "second"):
        publish_text(here, shard, text)
        there.fetch(same)
        assert same.read_text() == text
    same.write_text("altered")  # on the other machine
    there.fetch(same)
    assert same.read_text() == "second"
    here.delete(shard)
    there.fetch(same)
    assert not shard.exists()
    assert not same.exists()


def test_a_folder_is_what_lies_at_the_url_and_nothing_of_before(scratch: Path, url: str, tmp_path: Path) -> None:
    here = open_store(url)
    there = other_machine(here, tmp_path / "there")
    for store, name in ((here, "model.safetensors"), (there, "old.safetensors")):
        (store.root / "start" / "policy").mkdir(parents=True)
        (store.root / "start" / "policy" / name).write_text(name)
    here.publish(here.root / "start" / "policy")
    there.fetch(there.root / "start" / "policy")
    assert [path.name for path in (there.root / "start" / "policy").iterdir()] == ["model.safetensors"]


def test_what_is_fetched_once_is_not_fetched_again_by_another_process_of_the_machine(
    scratch: Path, url: str, tmp_path: Path
) -> None:
    here = open_store(url)
    there = other_machine(here, tmp_path / "there")
    publish_text(here, here.root / "a.txt", "a")
    there.fetch(there.root / "a.txt")
    inode = (there.root / "a.txt").stat().st_ino
    pickle.loads(pickle.dumps(there)).fetch(there.root / "a.txt")
    assert (there.root / "a.txt").stat().st_ino == inode  # a file that is fetched is a new one


def test_a_file_outside_the_run_directory_is_left_alone(scratch: Path, url: str, tmp_path: Path) -> None:
    store = open_store(url)
    model = tmp_path / "model.txt"
    publish_text(store, model, "mine")
    store.fetch(model)
    assert model.read_text() == "mine"
    assert store.list_names() == []


def test_a_local_run_transfers_nothing_and_deletes_what_it_is_told_to(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.list_names() == []
    publish_text(store, tmp_path / "a.txt", "a")
    store.fetch(tmp_path / "a.txt")
    store.publish_ledger(tmp_path / "ledger.jsonl")
    store.gather(tmp_path, [tmp_path / "a.txt"], lambda: pytest.fail("no process waits"), True)
    assert store.list_names() == ["a.txt"]
    store.delete(tmp_path / "a.txt")
    assert store.list_names() == []


def test_the_first_process_gathers_the_files_of_all_and_leaves_none_at_the_url(
    scratch: Path, url: str, tmp_path: Path
) -> None:
    stores = [open_store(url)]
    stores.append(other_machine(stores[0], tmp_path / "there"))
    folders = [store.root / "trainer" / "step-000001.tmp" for store in stores]
    for rank, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / f"rank-{rank}").write_text(str(rank))
    # A file of another process of the second machine, which sends it itself.
    (folders[1] / "other").write_text("other")
    barrier = threading.Barrier(2)

    def gather(rank: int) -> None:
        own = [folders[rank] / f"rank-{rank}"]
        stores[rank].gather(folders[rank], own, lambda: barrier.wait() and None, rank == 0)

    with ThreadPoolExecutor(2) as processes:
        list(processes.map(gather, range(2)))
    assert sorted(path.name for path in folders[0].iterdir()) == ["rank-0", "rank-1"]
    folders[1].joinpath("rank-1").unlink()
    folders[1].joinpath("other").unlink()
    stores[1].fetch(folders[1])
    assert list(folders[1].iterdir()) == []


def test_the_ledger_goes_up_after_the_files_that_it_speaks_of(scratch: Path, url: str, tmp_path: Path) -> None:
    here = open_store(url)
    publish_text(here, here.root / "config.yaml", "seed: 0")
    (here.root / "metrics.jsonl").write_text("{}\n")
    Ledger(RunLayout(here.root).ledger, here).append("run", keys={})
    assert here.list_names() == ["config.yaml", "ledger.jsonl", "metrics.jsonl"]
    there = other_machine(here, tmp_path / "there")
    fetch_small_files(there)
    assert "run" in Ledger(RunLayout(there.root).ledger)
    assert (there.root / "metrics.jsonl").read_text() == "{}\n"


def test_large_folders_come_when_they_are_asked_for(scratch: Path, url: str, tmp_path: Path) -> None:
    here = open_store(url)
    publish_text(here, here.root / "ledger.jsonl", "")
    publish_text(here, here.root / "start" / "policy" / "config.json", "{}")
    publish_text(here, here.root / "start" / "benchmark.json", "{}")
    there = other_machine(here, tmp_path / "there")
    fetch_small_files(there)
    assert (there.root / "start" / "benchmark.json").exists()
    assert not (there.root / "start" / "policy").exists()
    there.fetch(there.root / "start" / "policy")
    assert (there.root / "start" / "policy" / "config.json").exists()


def test_without_a_ledger_at_the_url_nothing_of_an_old_run_stays(scratch: Path, url: str) -> None:
    root = open_store(url).root
    (root / "iterations").mkdir(parents=True)
    (root / "ledger.jsonl").write_text("old\n")
    assert not open_store(url).root.exists()


def test_a_driver_of_another_machine_is_kept_out_as_long_as_it_lives(
    scratch: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(url, open_store(url).root)
    file_system, base = fsspec.core.url_to_fs(url)
    file_system.makedirs(base, exist_ok=True)
    for age, host in ((100, "elsewhere"), (400, "elsewhere"), (100, socket.gethostname())):
        with file_system.open(f"{base}/lock", "wb") as handle:
            handle.write(json.dumps({"host": host, "pid": 7, "time": time.time() - age}).encode())
        if (age, host) == (100, "elsewhere"):
            with pytest.raises(ConfigError, match="pid 7 on elsewhere"), hold_remote_lock(remote):
                pass
        else:
            with hold_remote_lock(remote):
                assert json.loads(file_system.cat(f"{base}/lock"))["pid"] == os.getpid()
            assert not file_system.exists(f"{base}/lock")


def test_a_transfer_that_fails_for_a_moment_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module.time, "sleep", lambda seconds: None)
    for failures in (2, 3):
        left = [OSError("no route")] * failures

        def transfer(left: list[OSError] = left) -> str:
            if left:
                raise left.pop()
            return "done"

        if failures < remote_module.ATTEMPTS:
            assert remote_module.retry(transfer) == "done"
        else:
            with pytest.raises(OSError, match="no route"):
                remote_module.retry(transfer)


def test_two_urls_have_two_folders_and_no_name_leads_out_of_the_scratch_folder(scratch: Path) -> None:
    urls = ["s3://a/run", "s3://b/run", "s3://b/run/", "memory://x/..", "memory://x/a b;c"]
    folders = [remote_module.cache_folder(url) for url in urls]
    assert len(set(folders)) == 4
    assert folders[1] == folders[2]
    assert {folder.parent for folder in folders} == {scratch.resolve()}


def test_the_best_policy_of_a_complete_run_is_copied_once_at_the_url(scratch: Path, url: str, tmp_path: Path) -> None:
    store = open_store(url)
    layout = RunLayout(store.root)
    book = Ledger(layout.ledger, store)
    for index in (0, 1):
        publish_text(store, layout.iteration(index).policy / "model.safetensors", f"weights {index}")
    publish_text(store, layout.iteration(0).policy / "only_here.json", "{}")
    copy = other_machine(store, tmp_path / "there")
    copied = RunLayout(copy.root).best
    for index, names in ((0, ["model.safetensors", "only_here.json"]), (1, ["model.safetensors"])):
        book.append("best", policy=f"iterations/{index:03d}", metric="nll", value=0.5 - index)
        publish_best(layout, book, store)
        copy.fetch(copied)
        assert sorted(file.name for file in copied.iterdir()) == names
        assert (copied / "model.safetensors").read_text() == f"weights {index}"
    lines = layout.ledger.read_text()
    publish_best(layout, book, store)
    # The model that the run was given is no policy of the run.
    book.append("best", policy="start", metric="nll", value=0.1)
    publish_best(layout, book, store)
    assert layout.ledger.read_text().startswith(lines)
    assert layout.ledger.read_text().count("best_copy") == 2
    # Only on demand: it holds weights.
    copy.delete(copied)
    fetch_small_files(copy)
    assert not copied.exists()


def test_a_server_that_cannot_copy_lets_this_machine_do_it(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path}/bucket/run")
    layout = RunLayout(store.root)
    publish_text(store, layout.iteration(0).policy / "model.safetensors", "weights")

    assert store.remote is not None
    file_system = store.remote.location[0]
    copy_file = file_system.cp_file

    def copy_only_from_or_to_this_machine(source: str, target: str) -> None:
        if "bucket" in source and "bucket" in target:
            raise NotImplementedError
        copy_file(source, target)

    monkeypatch.setattr(file_system, "cp_file", copy_only_from_or_to_this_machine)
    store.copy_folder(layout.iteration(0).policy, layout.best)
    assert (tmp_path / "bucket" / "run" / "policy_best" / "model.safetensors").read_text() == "weights"


def test_files_of_trackers_are_at_the_url_after_each_benchmark_and_at_the_end(scratch: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install tensorboard)")
    url = f"file://{tmp_path}/bucket/run"
    store = open_store(url)
    layout = RunLayout(store.root)
    layout.root.mkdir(parents=True, exist_ok=True)
    config = RunConfig(
        url,
        model=ModelConfig("m"),
        data=DataConfig("d"),
        feedback=FeedbackConfig(),
        objective=SpinObjective(),
        tracking=["tensorboard"],
    )
    reporter = Reporter(layout.metrics, layout.now)

    def size_at_url() -> int:
        return sum(file.stat().st_size for file in (tmp_path / "bucket").rglob("*tfevents*"))

    with tracked(config, store, reporter):
        assert size_at_url() == 0
        reporter.metrics_log.append("start/benchmark", kind="benchmark", policy="start", nll=0.5)
        first = size_at_url()
        assert first > 0
        reporter.metrics_log.append("iterations/000/policy", kind="train", step=1, steps=2, loss=0.5)
        assert size_at_url() == first
    assert size_at_url() > first


VAULT = '''
import os
from fsspec.implementations.local import LocalFileSystem

class Vault(LocalFileSystem):
    """The folder BUCKET of this machine, for those who know the password."""

    protocol = "vault"

    def __init__(self, password=None, **options):
        super().__init__(**options)
        if password != "s3cret":
            raise ValueError("Login incorrect")

    @classmethod
    def _strip_protocol(cls, path):
        if "://" in path:
            path = os.environ["BUCKET"] + "/" + path.partition("://")[2].partition("/")[2]
        return super()._strip_protocol(path)

    @staticmethod
    def _get_kwargs_from_urls(path):
        user = path.partition("://")[2].rpartition("@")[0]
        return {"password": user.partition(":")[2]}
'''


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL with a password. The folder of the run is bucket/run."""
    plugin = tmp_path / "plugin"
    metadata = plugin / "vault-1.0.dist-info"
    metadata.mkdir(parents=True)
    (plugin / "vault.py").write_text(VAULT)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vault\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fsspec.specs]\nvault = vault.Vault\n")
    monkeypatch.setenv("PYTHONPATH", str(plugin), prepend=os.pathsep)
    monkeypatch.setenv("BUCKET", str(tmp_path / "bucket"))
    return "vault://me:s3cret@host/run"


@pytest.mark.slow
def test_a_run_at_a_url_is_the_run_in_a_folder_also_when_driver_and_scratch_folder_are_lost_in_training(
    undisturbed: Path, scratch: Path, tmp_path: Path, vault: str
) -> None:
    there, words = tmp_path / "bucket" / "run", [f"run_dir={vault}"]
    shown = tmp_path / "shown.txt"
    with shown.open("w") as output:
        driver = subprocess.Popen(
            [*command(there)[:-1], *words], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    while not any(record["unit"] == "start/trainer" for record in ledger(there)) and driver.poll() is None:
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    scratch.rename(tmp_path / "lost")
    told = run(there, *words).stdout
    assert "warm start train goes on after step" in told
    assert outcome(there) == outcome(undisturbed)
    assert not (there / "start" / "trainer").exists()
    # A URL knows no links: the best policy is a copy.
    best = (Ledger(there / "ledger.jsonl", read_only=True).get("best") or {})["policy"]
    assert policy_digest(there / "policy_best") == policy_digest(there / best / "policy")
    scratch.rename(tmp_path / "lost too")
    for verb, more, expected in (
        ("status", [], "complete"),
        ("table", [], "iteration 1"),
        ("export", [f"to={tmp_path / 'best'}"], "is in"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from spin.cli.main import main; main()", verb, *words, *more],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        told += done.stdout + done.stderr
    assert "the run is complete" in run(there, *words).stdout
    # The password is neither shown nor kept: here, at the URL, or in a lost scratch folder.
    assert "vault://me@host/run" in told
    assert "s3cret" not in told
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "plugin"]
    assert [path for path in kept if b"s3cret" in path.read_bytes()] == []


def test_commands_on_a_url_without_a_run_and_refused_launches_leave_no_local_folder(
    scratch: Path, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/bucket/run"
    open_store(url)
    with pytest.raises(ConfigError, match="Protocol not known"):
        open_store("nowhere://bucket/run")
    assert list(scratch.iterdir()) == []

    # A launch is refused after it has claimed the directory.
    store = open_store(url)
    layout = RunLayout(store.root)

    def refuse(begun: bool) -> None:
        with locked(layout, store):
            publish_text(store, layout.launching, "")
            Ledger(layout.ledger, store).append("run", version="0.2.0", keys={})
            if begun:
                store.delete(layout.launching)
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        refuse(begun=False)
    assert list(scratch.iterdir()) == []
    # What tells the next launch that it may begin anew is at the URL.
    assert open_store(url).list_names() == ["launching", "ledger.jsonl"]

    # Once the run has begun, its local folder stays.
    with pytest.raises(ConfigError, match="refused"):
        refuse(begun=True)
    assert layout.ledger.exists()
