"""A wheel carries everything that its command needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.report.test_page import write_run

ROOT = Path(__file__).parents[2]


def call(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.slow
def test_a_built_wheel_carries_the_config_and_runs_without_the_checkout(tmp_path: Path) -> None:
    built = call("-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT), cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    run = write_run(tmp_path / "run")
    for arguments, expected in (
        (["--help"], "spin run"),
        (["run", "experiment=quickstart", "--cfg", "job"], "path: builtin:tiny"),
        (["report", f"run_dir={run}"], "report.html"),
    ):
        done = call(
            "-c",
            "import spin; assert 'site' in spin.__file__; from spin.cli.main import main; main()",
            *arguments,
            cwd=tmp_path,
            path=str(tmp_path / "site"),
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
