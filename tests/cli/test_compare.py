"""Comparisons of methods: their settings, the order of their runs, and the table."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from spin import __version__
from spin.cli import compare
from spin.cli.compare import COMPARISONS, read_comparison, run_comparison
from spin.cli.compare import METHODS as METHODS_OF_SPIN
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import DpoObjective
from spin.config.overrides import adapt_override
from spin.config.run import CONF_DIR, RunConfig, fingerprint, register, to_plain
from spin.config.unknown_keys import check_keys
from spin.errors import ConfigError
from spin.feedback.feedback_checks import check_feedback
from spin.report.method_table import mean_with_interval, show_methods
from spin.run_dir.files import file_sha256
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout

REGIMES = sorted(path.stem for path in COMPARISONS.glob("*.yaml") if path.stem != "quickstart")


KNOWN_METHODS = sorted(yaml.safe_load(METHODS_OF_SPIN.read_text()))


@pytest.mark.parametrize("name", REGIMES)
def test_every_method_can_be_composed_for_every_shipped_comparison(name: str, tmp_path: Path) -> None:
    register()
    comparison = read_comparison(name)
    comparison.choose_methods(KNOWN_METHODS)
    runs = comparison.list_runs(tmp_path)
    assert set(runs) == set(KNOWN_METHODS)
    data = []
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        for method_runs in runs.values():
            _, overrides = method_runs[0]
            cfg = compose("config", overrides=[adapt_override(word) for word in overrides])
            check_keys(cfg)
            config = OmegaConf.to_object(cfg)
            assert isinstance(config, RunConfig)
            check_feedback(config)
            # Equal optimizer steps of equally many rows, and the same data to measure on.
            assert config.training.steps is not None
            assert config.iterations * config.training.steps == 180
            assert config.training.batch_size == 64
            data.append((config.data.path, config.data.eval_path, config.benchmark.verifier))
            # The answers to 1,000 prompts, or a method that reads no answers.
            if "data.limit=20" not in overrides:
                per_iteration = config.generation.prompts_per_iteration or config.data.limit
                assert per_iteration is not None
                answers = config.iterations * per_iteration * config.generation.samples_per_prompt
                assert 11_000 < answers <= 12_000
    assert len(set(data)) == 1


def test_the_methods_of_the_quick_start_take_as_many_steps_from_the_same_start(tmp_path: Path) -> None:
    register()
    runs = read_comparison("quickstart").list_runs(tmp_path)
    configs = {}
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        for method, [(_, overrides)] in runs.items():
            cfg = compose("config", overrides=[adapt_override(word) for word in overrides])
            check_keys(cfg)
            config = OmegaConf.to_object(cfg)
            assert isinstance(config, RunConfig)
            check_feedback(config)
            configs[method] = config
    assert {(config.iterations, config.training.steps, config.seed) for config in configs.values()} == {(3, 30, 0)}
    assert {config.data.eval_path for config in configs.values()} == {"builtin:letters"}
    trained = [method for method, config in configs.items() if config.warmup.enabled]
    assert trained == ["flawed_sft"]
    start = str(tmp_path / "flawed_sft" / "seed-0" / "start" / "policy")
    assert {config.model.path for method, config in configs.items() if method not in trained} == {start}
    for method, config in configs.items():
        assert config.data.path == ("builtin:letters-habit" if method.startswith("flawed") else "builtin:letters")
    # The truths have the flaw: exact match with them would call flawed answers right.
    [source] = configs["flawed_verifier"].feedback.rewards
    assert source._target_ == "spin.data.builtin.is_sorted"


def test_named_methods_are_compared_with_the_first_one() -> None:
    comparison = read_comparison("few_truths")
    comparison.choose_methods(["tspin", "spin"])
    assert list(comparison.methods) == ["sft", "tspin", "spin"]
    runs = comparison.list_runs(Path("out"))
    # The 20 truths hold for all that learn from truths.
    assert all("data.limit=20" in method_runs[0][1] for method_runs in runs.values())


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"methods: no method gpo; expected sft, spin, .*verifier_grpo"):
        read_comparison("flawed_truths").choose_methods(["gpo"])


def write(folder: Path, **values: object) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


METHODS = {"sft": ["objective=sft"], "spin": ["objective=spin"]}


def test_the_first_method_makes_the_start_of_each_seed(tmp_path: Path) -> None:
    comparison = read_comparison(
        write(tmp_path, methods=METHODS, seeds=[5, 6], to="out", shared=["iterations=1"], share_start=True)
    )
    runs = comparison.list_runs(Path("out"))
    assert runs["sft"][1] == (
        Path("out/sft/seed-6"),
        ["iterations=1", "objective=sft", "seed=6", "run_dir=out/sft/seed-6"],
    )
    assert runs["spin"][1][1][-2:] == ["warmup.enabled=false", "model.path=out/sft/seed-6/start/policy"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": METHODS, "seeds": [1]}, "to is missing"),
        ({"methods": METHODS, "seeds": [1], "to": "a", "method": 1}, "no key method; expected methods, seeds, to"),
        ({"methods": METHODS, "seeds": [1, 1], "to": "a"}, r"seeds=\[1, 1\]: expected 1 to 10 different numbers"),
        ({"methods": ["sft", "gpo"], "seeds": [1], "to": "a"}, "methods: no method gpo; expected sft, spin"),
        ({"methods": METHODS, "seeds": [1], "to": "a", "further": {"sft": 1}}, "further.sft=1: expected a list"),
        ({"methods": {}, "seeds": [1], "to": "a"}, "methods: expected names with overrides"),
        ({"methods": {"a b": []}, "seeds": [1], "to": "a"}, "methods: name=a b: expected letters"),
        ({"methods": {"a": ["dpo"]}, "seeds": [1], "to": "a"}, r"methods.a=\['dpo'\]: expected a list of overrides"),
        ({"methods": {"a": ["seed=1"]}, "seeds": [1], "to": "a"}, "methods.a: seed=1: seeds and folders are those"),
    ],
)
def test_unusable_settings_are_refused_in_one_line(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        read_comparison(write(tmp_path, **values))
    assert "\n" not in str(refused.value)


def test_an_unknown_comparison_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"settings=flawed: no such comparison; expected .*flawed_truths"):
        read_comparison("flawed")


def test_a_failed_run_ends_the_comparison_and_the_same_command_begins_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A program that writes down its arguments and fails for the method spin.
    code = "import sys; print(*sys.argv[1:], flush=True); sys.exit('objective=spin' in sys.argv)"
    monkeypatch.setattr(compare, "PROGRAM", [*compare.PROGRAM[:2], code])
    settings = write(tmp_path, methods=METHODS, seeds=[5, 6], to=str(tmp_path))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="spin with seed 5 ended with exit code 1"):
            run_comparison(settings, None)
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("objective=")]
    assert [line.split()[:2] for line in told] == 2 * [["objective=sft", "seed=5"], ["objective=spin", "seed=5"]]


INTERRUPTED_RUN = """
import signal, sys, time

signals = []
signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
print("running", flush=True)
while not signals:
    time.sleep(0.01)
# Longer than a parent waits that kills its child.
time.sleep(1)
print(f"saved after {len(signals)} signal", file=sys.stderr)
sys.exit(130)
"""


@pytest.mark.parametrize("to_the_group", [True, False])
def test_an_interrupted_run_of_a_comparison_gets_one_signal_and_the_time_to_save(
    tmp_path: Path, to_the_group: bool
) -> None:
    settings = write(tmp_path, methods=METHODS, seeds=[5], to=str(tmp_path))
    program = (
        "import sys; from spin.cli import compare; from spin.cli.main import main; "
        f"compare.PROGRAM = [sys.executable, '-c', {INTERRUPTED_RUN!r}]; "
        f"sys.argv = ['spin', 'compare', {'settings=' + settings!r}]; main()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert driver.stdout is not None
    while driver.stdout.readline() != "running\n":
        assert driver.poll() is None
    # Ctrl-C at a terminal reaches the whole group, `kill` one process.
    if to_the_group:
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    # The run itself says that it was interrupted.
    assert (driver.returncode, errors) == (130, "saved after 1 signal\n")


def test_the_interval_is_that_of_students_t() -> None:
    # Standard deviation 0.1; 4.303 · 0.1 / √3 = 0.248.
    assert mean_with_interval([0.4, 0.5, 0.6]) == "0.500±.248"
    assert mean_with_interval([0.4]) == "0.400"


def write_run(folder: Path, seed: int, exact_match: float, tokens: int) -> Path:
    """Write a finished run of one iteration, as far as the table reads it."""
    config = RunConfig(
        str(folder),
        1,
        seed,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=FeedbackConfig(),
        objective=DpoObjective(),
    )
    layout = RunLayout(folder)
    folder.mkdir(parents=True)
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    ledger.append("run", version=__version__, keys=fingerprint(config))
    ledger.append("iterations/000/samples", tokens=tokens, seconds=3.0)
    ledger.append("iterations/000/policy", digest="d", opponent="m", steps=60, tokens=9, seconds=6.0)
    for stage, value in ((layout.start, 0.25), (layout.iteration(0), exact_match)):
        figures = {"exact_match_greedy": value, "exact_match_sampled": 0.5, "nll": 1.0, "kl_to_start": 0.0}
        stage.benchmark.parent.mkdir(parents=True, exist_ok=True)
        stage.benchmark.write_text(json.dumps(figures))
        ledger.append(f"{stage.name}/benchmark", sha256=file_sha256(stage.benchmark), seconds=1.0)
    return folder


def test_the_table_has_the_last_iteration_its_cost_and_the_differences_seed_by_seed(tmp_path: Path) -> None:
    runs = {
        "sft": [write_run(tmp_path / "sft" / str(seed), seed, value, 0) for seed, value in ((1, 0.5), (2, 0.7))],
        "dpo": [write_run(tmp_path / "dpo" / str(seed), seed, value, 1000) for seed, value in ((1, 0.6), (2, 0.8))],
    }
    shown = io.StringIO()
    show_methods(runs, Console(file=shown, width=200))
    lines = [line.split() for line in shown.getvalue().splitlines()]
    [start] = [line for line in lines if line[:1] == ["start"]]
    assert start[1:3] == ["0.250±.000", "0.500±.000"]
    [dpo] = [line for line in lines if line[:1] == ["dpo"] and line[1] != "minus"]
    # Standard deviation 0.141421; 12.706 · 0.141421 / √2 = 1.271.
    assert dpo[1] == "0.700±1.271"
    assert dpo[-4:] == ["60", "1,000", "3.0", "6.0"]
    assert "dpo minus sft: EM 0.100±.000" in shown.getvalue()


def test_runs_without_a_benchmark_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1, 0.5, 0)
    RunLayout(folder).iteration(0).benchmark.unlink()
    with pytest.raises(ConfigError, match="run has no benchmark of its start and its last iteration"):
        show_methods({"sft": [folder]}, Console(file=io.StringIO()))
