"""A wheel carries everything that its command needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spin.cli.namesake import find_namesake
from tests.report.test_page import write_run

ROOT = Path(__file__).parents[2]


def call(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, env=environment
    )


def build_wheel(folder: Path) -> Path:
    """Return a wheel of the checkout, built in the folder."""
    # A copy, because setuptools leaves a build folder in the place that it builds from.
    source = folder / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "outputs", "tests", ".mypy_cache", ".ruff_cache")
    )
    built = call("-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(source), cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_every_command_warns_when_the_other_project_named_spin_is_installed_beside_this_one(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    other = call(*install, "spin==0.19", cwd=tmp_path)
    if other.returncode != 0:
        pytest.skip("no package index has the other project")
    zipfile.ZipFile(build_wheel(tmp_path)).extractall(site)
    program = "from spin.cli.main import main; main()"
    for arguments in (["--version"], ["status", "run_dir=none"]):
        done = call("-P", "-c", program, *arguments, cwd=tmp_path, path=str(site))
        first = done.stderr.splitlines()[0]
        assert first.startswith("spin: warning: another project named spin (version 0.19) is installed"), done.stderr
        assert "pip uninstall spin spin-selfplay" in first


def test_an_installation_of_this_project_under_its_old_name_is_no_other_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name was `spin` up to version 0.2."""
    info = tmp_path / "spin-0.1.0.dist-info"
    info.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    metadata = "Metadata-Version: 2.4\nName: spin\nVersion: 0.1.0\nSummary: {}\n"
    (info / "METADATA").write_text(metadata.format("Developer tool for scientific Python libraries"))
    assert "version 0.1.0" in (find_namesake() or "")
    (info / "METADATA").write_text(metadata.format("Self-play iterative finetuning of language models, hands off"))
    assert find_namesake() is None


@pytest.mark.slow
def test_a_built_wheel_carries_the_config_and_runs_without_the_checkout(tmp_path: Path) -> None:
    zipfile.ZipFile(build_wheel(tmp_path)).extractall(tmp_path / "site")
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
