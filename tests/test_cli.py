"""Bad input: one clear line, an exit code, and every finished file as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = "experiment=quickstart"


def spin(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it."""
    command = [sys.executable, "-c", "from spin.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"})


BAD = {
    "an unknown command": (["go"], "no command 'go'"),
    "an unknown key": (["run", QUICK, "training.lr=1"], "Key 'lr' not in 'TrainingConfig'"),
    "an unknown key that is added": (["run", QUICK, "+foo=1"], "no config key foo"),
    "another objective's key": (["run", QUICK, "objective=sft", "objective.beta=1"], "Key 'beta' not in 'SftObjective'"),
    "a wrong type": (["run", QUICK, "iterations=x"], "could not be converted to Integer"),
    "a wrong choice": (["run", QUICK, "training.optimizer=sgd"], "expected one of [adamw, rmsprop]"),
    "an unknown recipe": (["run", "experiment=nope"], "Could not find 'experiment/nope'"),
    "nothing given": (["run"], "nothing given for data.path, model.path, run_dir"),
    "no iterations": (["run", QUICK, "iterations=0"], "iterations=0: expected at least 1"),
    "no temperature": (["run", QUICK, "generation.temperature=0"], "expected above 0"),
    "no room for a prompt": (["run", QUICK, "generation.max_tokens=96"], "leaves no room for a prompt"),
    "fewer rows than workers": (["run", QUICK, "training.batch_size=1", "training.workers=2"], "each worker needs a row"),
    "a missing model": (["run", QUICK, "model.path=./none"], "no such folder"),
    "a folder that is no model": (["run", QUICK, "model.path=."], "holds no config.json"),
    "an unknown built-in model": (["run", QUICK, "model.path=builtin:huge"], "the only built-in model is builtin:tiny"),
    "a missing data file": (["run", QUICK, "data.path=none.jsonl"], "no such file"),
    "an unreadable row": (["run", QUICK, "data.path=torn.jsonl"], "torn.jsonl:2: no JSON"),
    "an unknown built-in set": (["run", QUICK, "data.path=builtin:sums"], "expected one of builtin:letters"),
    "a bad answer pattern": (["run", QUICK, "data.answer_pattern='('"], "no regular expression"),
    "an answer beyond the model's context": (["run", QUICK, "training.max_length=9999", "generation.max_tokens=4000"], "exceed the model's context of 2048"),
    "a missing template": (["run", QUICK, "model.chat_template=x.jinja"], "no such file; expected auto, chatml, plain"),
    "an unwritable run directory": (["run", QUICK, "run_dir=/proc/none"], "cannot be written"),
    "a folder that is something else": (["run", QUICK, "run_dir=mine"], "is no run (no ledger) and not empty (thesis.txt)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    arguments, expected = BAD[name]
    (tmp_path / "torn.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt"\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = spin(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert done.stderr.startswith("spin: ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != "lock"] == ["thesis.txt"]


def test_the_resolved_config_is_shown_without_running(tmp_path: Path) -> None:
    done = spin("run", QUICK, "objective.link=hinge", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "link: hinge" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_help_shows_the_commands_and_the_keys(tmp_path: Path) -> None:
    assert "spin run experiment=quickstart" in spin("--help", cwd=tmp_path).stdout
    assert "samples_per_prompt" in spin("run", "--help", cwd=tmp_path).stdout


def test_a_refused_launch_does_not_bind_the_next_one(tmp_path: Path) -> None:
    assert "data.path" not in spin("run", QUICK, "data.path=none.jsonl", cwd=tmp_path).stderr
    again = spin("run", QUICK, "data.path=other.jsonl", cwd=tmp_path)
    assert "other.jsonl: no such file" in again.stderr
