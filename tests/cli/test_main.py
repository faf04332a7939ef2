"""Bad input: one clear line, an exit code, and every finished file as it was."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from spin.cli import dispatch

QUICK = "experiment=quickstart"
BEST_WORST = ["feedback.rows=best_worst_pairs", "generation.samples_per_prompt=4"]


def spin(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it."""
    command = [sys.executable, "-c", "from spin.cli.main import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"},
    )


BAD = {
    "an unknown command": (["go"], "no command 'go'"),
    "an unknown key": (
        ["run", QUICK, "training.lr=1"],
        "no config key training.lr; did you mean training.learning_rate?",
    ),
    "an unknown key that is added to a group": (
        ["run", QUICK, "+training.lerning_rate=1e-4"],
        "no config key training.lerning_rate; did you mean training.learning_rate?",
    ),
    "an unknown key in a config that is only shown": (
        ["run", QUICK, "++objective.betta=1", "--cfg", "job"],
        "no config key objective.betta; did you mean objective.beta?",
    ),
    "a group that is deleted": (["run", QUICK, "~training"], "~training deletes a part of the config"),
    "a group that is deleted from a config that is only shown": (
        ["run", QUICK, "~training", "--cfg", "job"],
        "~training deletes a part of the config",
    ),
    "a key that is deleted in iteration 1": (
        ["run", QUICK, "schedule={1:[~training.batch_size]}"],
        "schedule, iteration 1: ~training.batch_size deletes a part of the config",
    ),
    "an unknown key that is added": (["run", QUICK, "+foo=1"], "no config key foo"),
    "another objective's key": (
        ["run", QUICK, "objective=sft", "objective.beta=1"],
        "no config key objective.beta; expected one of name, sft_weight in objective",
    ),
    "a wrong type": (["run", QUICK, "iterations=x"], "could not be converted to Integer"),
    "a wrong choice": (["run", QUICK, "training.optimizer=sgd"], "expected one of [adamw, rmsprop]"),
    "an unknown recipe": (["run", "experiment=nope"], "no experiment=nope; expected one of grpo, "),
    "a misspelt recipe": (
        ["run", "experiment=quickstar"],
        "no experiment=quickstar; did you mean experiment=quickstart?",
    ),
    "a misspelt command": (["statu"], "no command 'statu'; did you mean spin status?"),
    "help about a misspelt key": (["help", "training.lr"], "did you mean training.learning_rate?"),
    "nothing given": (["run"], "nothing given for data.path, model.path, run_dir"),
    "no iterations": (["run", QUICK, "iterations=0"], "iterations=0: expected at least 1"),
    "no temperature": (
        ["run", QUICK, "generation.temperature=0"],
        "generation.temperature=0.0: expected at least 0.01 and at most 10",
    ),
    "no room for a prompt": (["run", QUICK, "generation.max_tokens=96"], "leaves no room for a prompt"),
    "a save interval that is none": (
        ["run", QUICK, "training.checkpoint_every=soon"],
        "expected optimizer steps (100), minutes (10min), or 0 for never",
    ),
    "no state to keep": (["run", QUICK, "training.keep=0"], "training.keep=0: expected at least 1"),
    "a custom model's code without leave": (["run", QUICK, "model.path=custom"], "trust_remote_code"),
    "a run directory that is a file": (["run", QUICK, "run_dir=torn.jsonl"], "cannot be written (File exists)"),
    "the status of what is no run": (["status", "run_dir=mine"], "holds no run (no config.yaml and ledger.jsonl)"),
    "a status of nothing": (["status"], "nothing given for run_dir; add run_dir=…"),
    "a typo in a status": (["status", "rundir=mine"], "did you mean run_dir=…?"),
    "fewer rows than workers": (
        ["run", QUICK, "training.batch_size=1", "training.workers=2"],
        "each worker needs a row",
    ),
    "a model shared out among one worker": (
        ["run", QUICK, "training.sharding=full"],
        "training.workers=1: one worker has no other to share the model with",
    ),
    "a sharding of the warm start alone": (
        ["run", QUICK, "warmup.training.workers=2", "warmup.training.sharding=full"],
        "set training.sharding, which the warm start follows",
    ),
    "a sharding that changes in iteration 1": (
        ["run", QUICK, "training.workers=2", "schedule={1:[training.sharding=full]}"],
        "training.sharding is the whole run's",
    ),
    "a missing model": (["run", QUICK, "model.path=./none"], "no such folder"),
    "a folder that is no model": (["run", QUICK, "model.path=."], "holds no config.json"),
    "an unknown built-in model": (["run", QUICK, "model.path=builtin:huge"], "the only built-in model is builtin:tiny"),
    "a missing data file": (["run", QUICK, "data.path=none.jsonl"], "no such file"),
    "an unreadable row": (["run", QUICK, "data.path=torn.jsonl"], "torn.jsonl:2: no JSON"),
    "an unknown built-in set": (["run", QUICK, "data.path=builtin:sums"], "expected one of builtin:letters"),
    "a bad answer pattern": (["run", QUICK, "data.answer_pattern='('"], "no regular expression"),
    "an answer beyond the model's context": (
        ["run", QUICK, "training.max_length=9999", "generation.max_tokens=4000"],
        "exceed the model's context of 2048",
    ),
    "a missing template": (["run", QUICK, "model.chat_template=x.jinja"], "no such file; expected auto, chatml, plain"),
    "an unwritable run directory": (["run", QUICK, "run_dir=/proc/none"], "cannot be written"),
    "a typo in iteration 2": (
        ["run", QUICK, "schedule={2:[training.lr=1]}"],
        "schedule, iteration 2: no config key training.lr; did you mean training.learning_rate?",
    ),
    "a wrong type in iteration 1": (
        ["run", QUICK, "schedule={1:[objective=ipo,objective.beta=x]}"],
        "schedule, iteration 1: objective.beta=x: Value 'x' of type 'str' could not be converted to Float",
    ),
    "a wrong value in iteration 1": (
        ["run", QUICK, "schedule={1:[objective=kto,objective.beta=-1]}"],
        "schedule, iteration 1: objective.beta=-1.0: expected above 0",
    ),
    "an unknown objective in iteration 1": (
        ["run", QUICK, "schedule={1:[objective=orpo]}"],
        "schedule, iteration 1: no objective=orpo; did you mean objective=irpo?",
    ),
    "a key of the whole run in iteration 1": (
        ["run", QUICK, "schedule={1:[data.limit=3]}"],
        "schedule, iteration 1: data.limit is the whole run's",
    ),
    "an iteration that is not run": (
        ["run", QUICK, "schedule={3:[objective=ipo]}"],
        "schedule names iteration 3, but the run has iterations 0 to 2",
    ),
    "a custom objective that is nowhere": (
        ["run", QUICK, "objective=custom", "objective._target_=my.loss"],
        "objective._target_=my.loss cannot be imported (No module",
    ),
    "a feedback class of version 0.1": (
        ["run", QUICK, "feedback._target_=my.Judge"],
        "feedback._target_ is no config key any more; use feedback.rows (how rows are built) and feedback.rewards",
    ),
    "a reward source that is nowhere": (
        ["run", QUICK, *BEST_WORST, "feedback.rewards=[{_target_: spin.feedback.Oracle}]"],
        "feedback.rewards: _target_=spin.feedback.Oracle cannot be imported",
    ),
    "an unknown reward source": (
        ["run", QUICK, *BEST_WORST, "feedback.rewards=[oracle]"],
        "feedback.rewards: no source oracle; expected one of exact_match",
    ),
    "an unknown key of a reward source": (
        ["run", QUICK, *BEST_WORST, "feedback.rewards=[{name: exact_match, wight: 2}]"],
        "feedback.rewards: no key wight; expected one of name, _target_, weight, parameters",
    ),
    "a reward source that is no list": (
        ["run", QUICK, *BEST_WORST, "feedback.rewards=exact_match"],
        "feedback.rewards",
    ),
    "pairs by reward without rewards": (["run", QUICK, *BEST_WORST], "and feedback.rewards is empty"),
    "pairs by reward of one sample in iteration 1": (
        ["run", QUICK, "schedule={1:[feedback.rows=best_worst_pairs,feedback.rewards=[exact_match]]}"],
        "generation.samples_per_prompt=1: feedback.rows=best_worst_pairs needs at least 2 samples of a prompt",
    ),
    "ratings for an objective of pairs": (
        ["run", QUICK, "feedback=dataset", "data.path=rated.jsonl"],
        "holds ratings, which objective=spin cannot use; take objective=kto",
    ),
    "feedback without labels": (["run", QUICK, "feedback.path=answers.jsonl"], "which have no labels"),
    "no feedback at all": (["run", QUICK, "feedback.rows=null"], "nothing to learn from"),
    "SPIN against the base": (["run", QUICK, "objective.reference=base"], "SPIN's reference is the opponent"),
    "no held-out samples": (["run", QUICK, "benchmark.samples=0"], "benchmark.samples=0: expected at least 1"),
    "a stop rule by no figure": (
        ["run", QUICK, "stop.metric=accuracy"],
        "stop.metric=accuracy: expected one of exact_match_greedy",
    ),
    "a stop rule without patience": (
        ["run", QUICK, "stop.patience=0"],
        "stop.patience=0: expected at least 1",
    ),
    "a stop rule that wants to get worse": (
        ["run", QUICK, "stop.min_delta=-1"],
        "stop.min_delta=-1.0: expected at least 0",
    ),
    "a stop rule without figures": (
        ["run", QUICK, "stop.patience=1", "benchmark.enabled=false"],
        "needs the metrics that benchmark.enabled=false leaves out",
    ),
    "an unknown baseline": (["run", QUICK, "baseline=dpo"], "expected one of [sft]"),
    "an unknown tracker": (
        ["run", QUICK, "tracking=neptune"],
        "tracking=neptune: expected one of tensorboard, wandb, mlflow",
    ),
    "trackers that are no list": (
        ["run", QUICK, "tracking=3"],
        "tracking=3: expected one of tensorboard, wandb, mlflow",
    ),
    "an unknown task of the harness": (["run", QUICK, "benchmark.lm_eval.tasks=[sorting]"], "knows no sorting"),
    "a task folder that is nowhere": (
        ["run", QUICK, "benchmark.lm_eval.tasks=[a]", "benchmark.lm_eval.include_path=none"],
        "include_path=none: no such folder",
    ),
    "no rows of a task": (
        ["run", QUICK, "benchmark.lm_eval.limit=0"],
        "benchmark.lm_eval.limit=0: expected at least 1",
    ),
    "fewer than no examples": (
        ["run", QUICK, "benchmark.lm_eval.num_fewshot=-1"],
        "benchmark.lm_eval.num_fewshot=-1: expected at least 0",
    ),
    "tasks without a benchmark": (
        ["run", QUICK, "benchmark.lm_eval.tasks=[a]", "benchmark.enabled=false"],
        "with benchmark.enabled=false",
    ),
    "a benchmark of no run": (["bench", "run_dir=mine"], "run_dir=mine holds no run"),
    "a benchmark without samples": (["bench", "run_dir=mine", "samples=0"], "samples=0: expected at least 1"),
    "one folder for the benchmarks of two runs": (
        ["bench", "run_dir=[mine,yours]", "to=x"],
        "to=x is one folder for 2 runs",
    ),
    "an unknown argument of a command": (["bench", "run_dir=mine", "sample=2"], "did you mean samples=…?"),
    "a table of no run": (["table", "run_dir=mine"], "run_dir=mine holds no run"),
    "an export of no run": (["export", "run_dir=mine", "to=x"], "run_dir=mine holds no run"),
    "an export without a folder": (["export", "run_dir=mine"], "nothing given for to"),
    "a report of no run": (["report"], "nothing given for run_dir"),
    "a report of a folder that is something else": (["report", "run_dir=mine"], "run_dir=mine holds no run"),
    "a report into a folder": (["report", "run_dir=mine", "to=mine"], "to=mine: expected the name of an .html file"),
    "a folder that is something else": (
        ["run", QUICK, "run_dir=mine"],
        "is no run (no ledger) and not empty (thesis.txt)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    arguments, expected = BAD[name]
    (tmp_path / "torn.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt"\n')
    (tmp_path / "answers.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    (tmp_path / "rated.jsonl").write_text(
        "".join(
            f'{{"prompt": "q{i}", "completion": "a", "label": {"true" if i % 2 else "false"}}}\n' for i in range(40)
        )
    )
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}')
    (custom / "code.py").write_text("raise SystemExit('ran')")
    (custom / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
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


def test_a_terminal_shows_a_line_before_the_heavy_imports_and_a_pipe_does_not(tmp_path: Path) -> None:
    words = ["check", QUICK, "model.path=builtin:huge"]
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", "from spin.cli.main import main; main()", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    first = os.read(controller, 1000).decode()
    assert first.startswith("spin check: loading PyTorch and checking the settings")
    process.communicate(timeout=120)
    os.close(controller)
    assert spin(*words, cwd=tmp_path).stdout == ""


def test_the_iterations_of_a_schedule_are_shown_where_they_differ(tmp_path: Path) -> None:
    done = spin(
        "run",
        QUICK,
        "schedule={1:[objective=ipo, training.learning_rate=1e-6], 2:[objective.beta=2]}",
        "--cfg",
        "job",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    first, second, third = (yaml.safe_load(part) for part in done.stdout.split("---\n"))
    assert first["schedule"] == {1: ["objective=ipo", "training.learning_rate=1e-6"], 2: ["objective.beta=2"]}
    assert (second["objective"]["name"], second["training"]["learning_rate"]) == ("ipo", 1e-6)
    assert set(third) == {"objective"}
    assert (third["objective"]["name"], third["objective"]["beta"]) == ("spin", 2.0)


def test_help_shows_the_commands_and_the_keys(tmp_path: Path) -> None:
    assert "spin run experiment=quickstart" in spin("--help", cwd=tmp_path).stdout
    assert "samples_per_prompt" in spin("run", "--help", cwd=tmp_path).stdout


def test_a_refused_launch_does_not_bind_the_next_one(tmp_path: Path) -> None:
    assert "data.path" not in spin("run", QUICK, "data.path=none.jsonl", cwd=tmp_path).stderr
    again = spin("run", QUICK, "data.path=other.jsonl", cwd=tmp_path)
    assert "other.jsonl: no such file" in again.stderr


@pytest.mark.parametrize("word", ["training.lerning_rate=1", "data.path=gone.jsonl", "model.path=./gone"])
def test_a_misspelt_key_or_path_is_refused_before_anything_heavy_is_imported(tmp_path: Path, word: str) -> None:
    program = (
        "import sys\nfrom spin.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted({'torch', 'ray', 'vllm', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", program, "run", QUICK, word]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr


def test_the_wall_clock_of_the_first_run_begins_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_RUN_DIRS", [])
    age = time.time() - psutil.Process().create_time()
    assert time.perf_counter() - dispatch.find_start() == pytest.approx(age, abs=1.0)
    # A further run of a sweep begins now.
    monkeypatch.setattr(dispatch, "_RUN_DIRS", ["first"])
    assert time.perf_counter() - dispatch.find_start() < 1.0


@pytest.mark.parametrize("moment", ["delete_abandoned", "find_namesake", "register", "spin.cli.commands"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_run_begins_ends_the_command_with_one_line(
    tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    """The signal comes as the function begins, or as the module is imported."""
    # A profile function is called at each call of a function, and for a module's code too.
    program = (
        "import os, sys\nfrom spin.cli.main import main\n"
        "def profile(frame, event, argument):\n"
        "    names = (frame.f_code.co_name, frame.f_globals.get('__name__'))\n"
        f"    if event == 'call' and {moment!r} in (names[0], names[1]):\n"
        f"        sys.setprofile(None)\n        os.kill(os.getpid(), {int(number)})\n"
        "sys.setprofile(profile)\nmain()"
    )
    words = [sys.executable, "-c", program, "run", QUICK]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == "spin: interrupted; the same command continues the run\n"
    assert (done.returncode, done.stdout) == (130, "")


def test_an_interrupt_that_a_library_turns_into_an_error_is_an_interrupt(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom spin.cli import dispatch\nfrom spin.cli.main import main\n"
        "def compose(overrides):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n        raise RuntimeError('an import failed')\n"
        "dispatch.check_overrides = compose\nmain()"
    )
    words = [sys.executable, "-c", program, "run", QUICK]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "spin: interrupted; the same command continues the run\n")
