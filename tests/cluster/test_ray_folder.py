"""Temporary files of a run go with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spin.cluster import ray_folder as module
from spin.cluster.ray_folder import PREFIX, ray_folder

PROCESS = """
import os, sys, tempfile
from pathlib import Path
from spin.cluster import ray_folder
ray_folder.LONGEST_BASE = 1000
with ray_folder.ray_folder(Path(sys.argv[1], "logs")) as folder:
    print(folder, flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    elif sys.argv[2] == "again":
        words = [sys.executable, "-c", sys.argv[3], sys.argv[1], "end"]
        os.execve(sys.executable, words, {**os.environ, "TMPDIR": sys.argv[1]})
    elif sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
"""


def start(base: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", PROCESS, str(base), *words]
    environ = {**os.environ, "TMPDIR": str(base)}
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)


def test_what_a_killed_process_left_is_deleted_by_the_next_but_not_the_folder_of_a_living_one(tmp_path: Path) -> None:
    living = start(tmp_path, "wait")
    assert living.stdout is not None
    folder = Path(living.stdout.readline().strip()).parent
    start(tmp_path, "killed").communicate()
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 2
    # Any command deletes it, before it looks at its arguments.
    main = "from spin.cli.main import main; main()"
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", main, "status", "run_dir=none"], capture_output=True, env=environ)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == [folder]
    living.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_starts_itself_again_deletes_what_it_left_before(tmp_path: Path) -> None:
    told, _ = start(tmp_path, "again", PROCESS).communicate()
    first, second = told.splitlines()
    assert first != second
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_path_is_too_long_for_sockets_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    with ray_folder(tmp_path / "logs") as folder:
        assert folder.parents[1] == Path("/tmp")
        assert Path(os.environ["TMPDIR"]).parent == folder.parent
    assert not folder.parent.exists()


def test_the_logs_of_ray_are_kept_when_the_run_ends_with_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with ray_folder(tmp_path / "ray_logs") as folder:
            logs = folder / "session_latest" / "logs"
            logs.mkdir(parents=True)
            (logs / "raylet.err").write_text("out of memory")
            raise RuntimeError("the run failed")

    with pytest.raises(RuntimeError, match="the run failed"):
        fail()
    assert (tmp_path / "ray_logs" / "raylet.err").read_text() == "out of memory"


def test_a_command_that_imports_torch_leaves_nothing(tmp_path: Path) -> None:
    """Torch makes a folder for its compiler when transformers imports that."""
    code = (
        "from spin.cluster.environment import prepare_ray; prepare_ray(None); prepare_ray(None); "
        "import os, torch._inductor.codecache as module; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
