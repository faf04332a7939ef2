"""A policy's digest: files that did not change are read once, files that changed are read again."""

import os
import time
from pathlib import Path

import pytest

from spin.models import policy
from spin.models.policy import policy_digest


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of files whose content was read, which grows with each reading."""
    names: list[str] = []
    original = policy.file_sha256

    def read_file(file: Path) -> str:
        names.append(file.name)
        return original(file)

    monkeypatch.setattr(policy, "file_sha256", read_file)
    return names


def make_folder(folder: Path, age: float) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    # The time of change of an inode cannot be set, so tests move the clock instead.
    now = time.time() - age
    for file in folder.iterdir():
        os.utime(file, (now, now))
    return folder


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]) -> None:
    folder = make_folder(tmp_path / "policy", age=60)
    later = time.time() + 60
    monkeypatch.setattr(policy.time, "time", lambda: later)
    first = policy_digest(folder)
    assert read == ["config.json", "model.safetensors"]
    assert policy_digest(folder) == first
    assert read == ["config.json", "model.safetensors"]


def test_a_changed_file_of_equal_size_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    folder = make_folder(tmp_path / "policy", age=60)
    later = time.time() + 60
    monkeypatch.setattr(policy.time, "time", lambda: later)
    first = policy_digest(folder)
    weights = folder / "model.safetensors"
    before = weights.stat()
    time.sleep(0.02)  # a time stamp of the file system lasts some milliseconds
    weights.write_text("model.safetensorz")
    # The old time of the content can be set again, but not that of the inode.
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert policy_digest(folder) != first
    assert read[2:] == ["model.safetensors"]


def test_a_file_that_was_just_written_is_read_each_time(tmp_path: Path, read: list[str]) -> None:
    folder = make_folder(tmp_path / "policy", age=0)
    policy_digest(folder)
    policy_digest(folder)
    assert read == ["config.json", "model.safetensors"] * 2
