"""The Ray of a run admits its own processes alone: by a token and a folder of mode 0700."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin.cluster import environment
from spin.errors import ConfigError

OWNER = """
import sys
from pathlib import Path
from spin.cluster.environment import prepare_ray
prepare_ray(None)
import ray
from spin.cluster.ray_cluster import started
from spin.config.run import RunConfig
from spin.run_dir.store import RunStore
run_dir = Path(sys.argv[1])
context = started(RunConfig(run_dir=str(run_dir)), run_dir / "native.log", [], print, RunStore(run_dir))
context.__enter__()
print(ray.get_runtime_context().gcs_address, ray._private.worker._global_node.get_session_dir_path(), flush=True)
sys.stdin.read()
context.__exit__(None, None, None)
"""
"""Starts Ray as a run does, prints the address and the session folder, and waits."""

CLIENT = """
import os, sys
from ray._raylet import GcsClient
if len(sys.argv) == 3:
    # After the import: the other user may not be able to read this Python.
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
client = GcsClient(address=sys.argv[1])
client.internal_kv_put(b"key", b"a pickled function", True, b"fun", timeout=10)
"""
"""Replaces a function in Ray's key-value store, as an attacker would."""


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """The address, the session folder and the environment of a Ray that a run has started."""
    # A user who had switched authentication off for clusters of their own.
    environ = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    run_dir = tmp_path_factory.mktemp("run")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert owner.stdout is not None
    address, folder = owner.stdout.readline().split()
    [raylet] = [
        path
        for path in Path("/proc").glob("[0-9]*")
        if (path / "comm").read_text() == "raylet\n" and folder in (path / "cmdline").read_text()
    ]
    words = (raylet / "environ").read_text().split("\0")
    yield address, Path(folder), dict(word.partition("=")[::2] for word in words if word)
    owner.communicate("", timeout=60)
    assert not Path(folder).parents[1].exists()


def put(address: str, *user: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, address, *user],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
    )


@pytest.mark.slow
def test_a_client_without_the_token_or_with_another_is_refused(own_ray: tuple[str, Path, dict[str, str]]) -> None:
    address, _, found = own_ray
    token = found["RAY_AUTH_TOKEN"]
    assert put(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).returncode == 0
    for refused in (
        put(address, RAY_AUTH_MODE="disabled"),
        put(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
    ):
        assert refused.returncode == 1
        assert "nauthenticated" in refused.stderr or "UNAUTHENTICATED" in refused.stderr, refused.stderr


@pytest.mark.slow
def test_another_user_finds_neither_the_ports_nor_the_token_and_is_refused(
    own_ray: tuple[str, Path, dict[str, str]],
) -> None:
    address, folder, found = own_ray
    # The folder is Ray's; the one above belongs to the run.
    assert stat.S_IMODE(folder.parents[1].stat().st_mode) == 0o700
    token = found["RAY_AUTH_TOKEN"]
    assert [path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token not in path.read_text(errors="replace")
        except OSError:
            continue

    if os.getuid() != 0:
        pytest.skip("only root can start a process of another user")
    listed = subprocess.run(["ls", str(folder)], capture_output=True, text=True, user=65534)
    assert "Permission denied" in listed.stderr
    refused = put(address, "65534", RAY_AUTH_MODE="disabled")
    assert refused.returncode == 1
    assert "nauthenticated" in refused.stderr or "UNAUTHENTICATED" in refused.stderr, refused.stderr


def test_the_token_file_of_a_cluster_is_refused_when_others_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert environment.find_auth_mode() == "disabled"
    path.write_text("secret")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640: other users can read the token"):
        environment.find_auth_mode()
    path.chmod(0o600)
    assert environment.find_auth_mode() == "token"


def test_cluster_sh_makes_a_token_for_its_owner_alone_and_refuses_one_that_others_can_read(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    script = Path(__file__).parents[2] / "scripts" / "cluster.sh"
    # In place of Ray itself, a script shows how it would be started, and fails when it is asked to.
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    calls = tmp_path / "calls"
    (bin_folder / "ray").write_text(f'#!/bin/sh\necho "$@" > {calls}\necho words of Ray\nexit ${{RAY_EXIT:-0}}\n')
    (bin_folder / "ray").chmod(0o755)
    copy = tmp_path / "scripts" / "cluster.sh"
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(script.read_text())

    def call(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path / "ray"), **more}
        return subprocess.run(["bash", str(copy), *words], capture_output=True, text=True, env=environ)

    # A worker needs the token of the head.
    assert call("worker", "10.0.0.1:6379").returncode == 2
    alone = call("head").stdout
    assert "a cluster of this machine alone" in alone
    assert "cluster.address=127.0.0.1:6379" in alone
    assert "--node-ip-address=127.0.0.1 --port=6379" in calls.read_text()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ray").stat().st_mode) == 0o700
    assert len(token.read_text()) == 64

    # The head prints what to type on the other machines; the words of Ray name commands that lack
    # the token, so they are shown only if it fails.
    others = call("head", "7000", ADDRESS="10.0.0.1").stdout
    assert f"copy the secret {token}" in others
    assert "bash scripts/cluster.sh worker 10.0.0.1:7000\n" in others
    assert "words of Ray" not in others
    failed = call("head", RAY_EXIT="1")
    assert failed.returncode == 2
    assert failed.stderr.startswith("words of Ray\ncluster.sh: Ray did not start")

    # A worker takes the address from which it reaches the head.
    assert call("worker", "10.0.0.1:6379").returncode == 0
    assert "--address=10.0.0.1:6379" in calls.read_text()
    assert "--node-ip-address" not in calls.read_text()
    call("worker", "10.0.0.1:6379", ADDRESS="10.0.0.2")
    assert "--node-ip-address=10.0.0.2" in calls.read_text()

    token.chmod(0o644)
    for words in (("head",), ("worker", "10.0.0.1:6379")):
        refused = call(*words)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert "644; expected" in refused.stderr
