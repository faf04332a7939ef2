"""Tab completion offers commands, keys, values and files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spin.cli.completion import complete, list_words
from spin.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spin st", ["status "]),
        ("spin run tr", ["tracking=", "training."]),
        ("spin check training.le", ["training.learning_rate="]),
        ("spin run training.sharding=", ["training.sharding=none ", "training.sharding=full "]),
        ("spin run experiment=quick", ["experiment=quickstart "]),
        ("spin run seed=1 pairs.drop_cut=t", ["pairs.drop_cut=true "]),
        ("spin run --c", ["--cfg"]),
        ("spin export it", ["iteration="]),
        ("spin help warm", ["warmup."]),
        ("spin completion z", ["zsh"]),
        ("spin nothing ", []),
    ],
)
def test_a_line_is_completed(line: str, expected: list[str]) -> None:
    assert list_words(line) == expected


def test_files_complete_the_value_of_a_key_that_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train.jsonl").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    assert list_words("spin run data.path=") == ["data.path=train/", "data.path=train.jsonl "]
    assert list_words("spin status run_dir=train/") == []


@pytest.mark.parametrize("words", [[], ["csh"], ["words"]])
def test_another_shell_is_refused_with_the_known_ones(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected one of bash, zsh, fish"):
        complete(words)


def test_bash_completes_the_part_behind_an_equals_sign(tmp_path: Path) -> None:
    program = tmp_path / "spin"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from spin.cli.main import main; main()" "$@"\n')
    program.chmod(0o700)
    line = "spin run training.sharding=f"
    script = (
        f'{complete(["bash"])}\nCOMP_LINE="{line}" COMP_POINT={len(line)} && _spin && printf "[%s]" "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "[full ]", done.stderr
