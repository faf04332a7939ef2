"""What is shipped: a wheel whose command works, and a README whose commands do."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spin.cli.commands import COMMANDS as spin_commands
from spin.cli.commands import parse
from tests.report.test_page import write_run

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def call(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_names_files_and_keys_that_exist(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "bash":
        assert os.access(ROOT / words[1], os.X_OK)
        return
    if words[0] == "python":
        assert (ROOT / words[1]).exists()
        return
    if words[0] == "spin" and words[1] in spin_commands:
        assert isinstance(parse(words[1], spin_commands[words[1]][0], words[2:]), spin_commands[words[1]][0])
        return
    assert words[0] == "spin", f"no test knows {command!r}"
    assert words[1] in ("run", "check"), f"no test knows {command!r}"
    if "--help" not in words and "--cfg" not in words:
        if "-m" in words:  # --cfg shows one job: that of the first value
            words = [word.split(",")[0] for word in words if word != "-m"]
        words += ["--cfg", "job"]
    done = call("-c", "from spin.cli.main import main; main()", *words[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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
