"""A password in the URL of a run directory is used and never shown."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from spin.cli.dispatch import hide_password
from spin.config.run import RunConfig
from spin.preflight.claim import claim
from spin.run_dir.credentials import _WITH_PASSWORD, add_password, hide_passwords
from spin.run_dir.store import open_store

GIVEN, SHOWN = "vault://me:s3cret@host:21/runs/a", "vault://me@host:21/runs/a"


class Vault(MemoryFileSystem):
    """A file system that opens with the right password only."""

    protocol = "vault"
    store: dict[str, Any] = {}
    cachable = False

    def __init__(self, password: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        if password != "s3cret":
            raise ValueError("Login incorrect")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].partition("/")[2] if "://" in path else path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        user, _, host = path.partition("://")[2].rpartition("@")
        return {"password": user.partition(":")[2]} if host else {}


@pytest.fixture(autouse=True)
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPIN_SCRATCH", str(tmp_path / "scratch"))
    fsspec.register_implementation("vault", Vault, clobber=True)
    yield
    Vault.store.clear()
    _WITH_PASSWORD.clear()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("run_dir=ftp://me:a%40b@host/run", "run_dir=ftp://me@host/run"),
        ("run_dir=[ftp://me:one@a/run,'sftp://you:two@b']", "run_dir=[ftp://me@a/run,'sftp://you@b']"),
        ("to=ftp://me:secret@host", "to=ftp://me@host"),
        # No password: a container, a port, a time.
        ("run_dir=abfs://container@account.net/run", "run_dir=abfs://container@account.net/run"),
        ("run_dir=ftp://host:21/a@b", "run_dir=ftp://host:21/a@b"),
        ("run_dir=runs/12:30@home", "run_dir=runs/12:30@home"),
        # Not opened by spin itself: the library needs the password.
        ("data.path=https://me:secret@host/a.json", "data.path=https://me:secret@host/a.json"),
    ],
)
def test_the_password_alone_is_taken_out_of_an_argument(given: str, shown: str) -> None:
    assert hide_password(given) == shown


def test_the_password_comes_back_for_a_connection_to_its_host_alone() -> None:
    hide_passwords(GIVEN)
    assert add_password("vault://me@host:21/runs/b") == "vault://me:s3cret@host:21/runs/b"
    assert add_password("vault://me@host:22/runs/b") == "vault://me@host:22/runs/b"
    assert add_password("vault://you@host:21") == "vault://you@host:21"


def test_a_run_opens_with_the_password_and_keeps_none_of_it(tmp_path: Path) -> None:
    store = open_store(GIVEN)
    assert store.remote is not None
    assert SHOWN in repr(store)
    assert "s3cret" not in repr(store)
    config = RunConfig(run_dir=hide_passwords(GIVEN))
    claim(config, [config], store)
    kept = [*Vault.store.values()]
    assert len(kept) >= 2
    assert SHOWN.encode() in b"".join(file.getvalue() for file in kept)
    assert all(b"s3cret" not in file.getvalue() for file in kept)
    local = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(b"s3cret" not in path.read_bytes() and "s3cret" not in str(path) for path in local)
    # The same URL again finds the same run.
    assert "ledger.jsonl" in open_store(GIVEN).list_names()


def test_an_actor_that_gets_the_store_has_the_password_too() -> None:
    sent = pickle.dumps(open_store(GIVEN))
    # The other process has never seen the URL.
    _WITH_PASSWORD.clear()
    store = pickle.loads(sent)
    assert store.remote.url == SHOWN
    assert store.list_names() == []


def test_an_error_shows_no_password(tmp_path: Path) -> None:
    words = ["run", "experiment=quickstart", "run_dir=nowhere://me:s3cret@host/run"]
    done = subprocess.run(
        [sys.executable, "-c", "from spin.cli.main import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("spin: run_dir=nowhere://me@host/run: ")
    assert "s3cret" not in done.stdout + done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()] == []
