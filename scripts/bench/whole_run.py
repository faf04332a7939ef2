"""Compare a whole run of spin with the script that a careful user would write.

    python scripts/bench/whole_run.py --json whole_run.json                   3 iterations
    python scripts/bench/whole_run.py --iterations 3 10 --draws 2 --json x.json

spin     `spin run experiment=quickstart` without warm-up and baseline
script   a process a stage, as from bash: vLLM for the answers, TRL's DPOTrainer for training, vLLM
         for the held-out answers, transformers for their NLL: see `script_stages.py`

Both begin with the same policy after a warm-up, which is made first and is not counted. Both have
the same prompts, sampling settings, numbers of answers, loss, batches and steps, and measure the
start and every iteration on the same held-out rows. spin does more: it also scores its own answers
for the KL divergence and the win rate, computes intervals, verifies files and can be continued.
Tokenising is part of spin's time alone.

CPU seconds count, those of all processes (`process_tree.py`). Wall clock is written too; it means
something on an idle machine only. The runs take turns. spin's seconds are also given by process and
by phase: start-up, stages, and `end`, which is the end of the run and of Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.baseline import describe_machine, list_versions
from scripts.bench.process_tree import Usage, measure_command
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.models.policy import policy_digest
from spin.report.run_report import collect
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore

ROOT = Path(__file__).resolve().parents[2]

SPIN = [sys.executable, "-c", "from spin.cli.main import main; main()", "run", "experiment=quickstart"]

PREPARE = ["iterations=1", "baseline=null", "benchmark.enabled=false"]
"""Overrides of the run that makes the warmed-up policy and tokenises the rows."""

MEASURED = ["baseline=null", "warmup.enabled=false"]
"""Overrides of the measured runs."""

ROLES = {
    # Its arguments name the programs of its children.
    "raylet/raylet": "raylet",
    "ray::Generator": "engine",
    "ray::TrainingWorker": "trainer",
    "ray::IDLE": "idle workers",
    "default_worker.py": "idle workers",
    "gcs/gcs_server": "gcs",
    "log_monitor.py": "log monitor",
    "ray::DashboardAgent": "dashboard agent",
    "dashboard/agent.py": "dashboard agent",
    "ray::RuntimeEnvAgent": "runtime env agent",
    "runtime_env/agent": "runtime env agent",
    "dashboard/dashboard.py": "dashboard",
    "autoscaler": "autoscaler",
    "spin.cli.main": "driver",
}
"""Part of a command line, and the role of the process in a run of spin."""


def name_role(command: str) -> str:
    """Return the role of a process in a run of spin."""
    for part, role in ROLES.items():
        if part in command:
            return role
    return "other"


def make_environment() -> dict[str, str]:
    """Return the environment of both sides: one thread, and no requests to the Hub."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


def prepare(folder: Path) -> tuple[Path, list[int]]:
    """Make the warmed-up policy and the files of rows; return the policy and its stop ids."""
    run_dir = folder / "prepared"
    done = subprocess.run(
        [*SPIN, f"run_dir={run_dir}", *PREPARE], capture_output=True, text=True, env=make_environment()
    )
    if done.returncode:
        raise RuntimeError(f"the warm-up failed:\n{(done.stdout + done.stderr)[-3000:]}")
    layout = RunLayout(run_dir)
    for name in ("train", "heldout"):
        rows = []
        for prompt in read_rows(layout.prompts(name), Prompt):
            rows.append({"prompt_ids": prompt.prompt_ids, "completion_ids": prompt.completion_ids})
        (folder / f"{name}.json").write_text(json.dumps(rows))
    policy = layout.start.policy
    stop = json.loads((policy / "generation_config.json").read_text())["eos_token_id"]
    if isinstance(stop, int):
        stop = [stop]
    return policy, stop


def list_stages(folder: Path, work: Path, policy: Path, stop: list[int], iterations: int) -> list[list[str]]:
    """Return the stages of the script in order: the words after `script_stages.py`.

    Args:
        folder: Where the rows are.
        work: Where policies and answers go.
        policy: The policy to begin with.
        stop: Token ids that end an answer.
        iterations: Number of iterations.
    """
    train, heldout = str(folder / "train.json"), str(folder / "heldout.json")
    stages = []

    def add(stage: str, rows: str, out: Path, *more: str) -> None:
        words = [stage, "--policy", str(policy), "--rows", rows, "--out", str(out), *more]
        stages.append([*words, "--stop-ids", *map(str, stop)])

    def benchmark(name: str) -> None:
        add("answer", heldout, work / f"{name}-answers.json")
        add("score", heldout, work / f"{name}-nll.json")

    benchmark("start")
    for index in range(iterations):
        answers, trained = work / f"{index}-generated.json", work / f"{index}-policy"
        add("generate", train, answers, "--seed", str(index))
        add("train", train, trained, "--answers", str(answers), "--seed", str(index))
        policy = trained
        benchmark(str(index))
    return stages


def run_script(folder: Path, work: Path, policy: Path, stop: list[int], iterations: int) -> dict[str, Any]:
    """Run all stages of the script and return its figures."""
    work.mkdir()
    found: dict[str, Any] = {"cpu_seconds": 0.0, "seconds": 0.0, "stages": {}, "start_up": {}}
    for words in list_stages(folder, work, policy, stop, iterations):
        stage = words[0]
        command = [sys.executable, str(Path(__file__).with_name("script_stages.py")), *words]
        log = work / "log.txt"
        usage = measure_command(command, make_environment(), log)
        started = 0.0
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith('{"start_cpu_seconds"'):
                started = json.loads(line)["start_cpu_seconds"]
        found["cpu_seconds"] += usage.cpu_seconds
        found["seconds"] += usage.seconds
        found["stages"][stage] = found["stages"].get(stage, 0.0) + usage.cpu_seconds
        found["start_up"][stage] = found["start_up"].get(stage, 0.0) + started
    last = iterations - 1
    found["result"] = {
        **json.loads((work / f"{last}-answers.json").read_text()),
        **json.loads((work / f"{last}-nll.json").read_text()),
    }
    return found


def run_spin(run_dir: Path, policy: Path, iterations: int, overrides: list[str]) -> dict[str, Any]:
    """Run spin and return its figures, by process and by phase."""
    words = [*MEASURED, f"run_dir={run_dir}", f"model.path={policy}", f"iterations={iterations}", *overrides]
    log = run_dir.with_suffix(".log")
    usage = measure_command([*SPIN, *words], make_environment(), log)
    report = collect(RunStore(run_dir), "spin")
    spans = [(span.kind, span.start, span.end) for span in report.spans]
    stage = RunLayout(run_dir).iteration(iterations - 1)
    values = json.loads(stage.benchmark.read_text())
    return {
        "cpu_seconds": usage.cpu_seconds,
        "seconds": usage.seconds,
        # On a busy machine Ray may miss its time limits; such a draw is none.
        "restarts": log.read_text(errors="replace").count("starting again"),
        "phases": split_phases(usage, spans),
        "digest": policy_digest(stage.policy),
        "result": {
            "greedy": values["exact_match_greedy"],
            "sampled": values["exact_match_sampled"],
            "nll": values["nll"],
        },
    }


def split_phases(usage: Usage, spans: list[tuple[str, float, float]]) -> dict[str, dict[str, float]]:
    """Return CPU seconds by phase and by role of the process.

    A stage has what was used since the end of the one before it, so that nothing is left out.
    Before the first stage is the start-up, after the last one the end.

    Args:
        usage: What the run used.
        spans: Kind, start and end (s since the epoch) of each stage.
    """
    spans = sorted(spans, key=lambda span: span[2])
    moments = [("start-up", spans[0][1])]
    moments += [(kind, end) for kind, _, end in spans]
    moments.append(("end", usage.times[-1]))
    before = 0.0
    phases: dict[str, dict[str, float]] = {}
    for phase, moment in moments:
        roles = phases.setdefault(phase, {})
        for role, seconds in usage.sum_roles(name_role, before, moment).items():
            roles[role] = roles.get(role, 0.0) + seconds
        before = moment
    return phases


def summarise(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratios of spin to the script: of all draws together, and of each."""
    ratios = {}
    for key in ("cpu_seconds", "seconds"):
        ours = [draw["spin"][key] for draw in draws]
        theirs = [draw["script"][key] for draw in draws]
        ratios[key] = round(sum(ours) / sum(theirs), 3)
        ratios[f"{key}_by_draw"] = [round(own / other, 3) for own, other in zip(ours, theirs, strict=True)]
    return ratios


def print_phases(phases: dict[str, dict[str, float]]) -> None:
    """Print the CPU seconds of a run of spin: a row for each role, a column for each phase."""
    roles = sorted({role for found in phases.values() for role in found})
    print(f"{'':20}" + "".join(f"{phase:>11}" for phase in phases) + f"{'together':>11}")

    rows = {role: [found.get(role, 0.0) for found in phases.values()] for role in roles}
    rows["together"] = [sum(found.values()) for found in phases.values()]
    for name, values in rows.items():
        print(f"{name:20}" + "".join(f"{value:11.2f}" for value in [*values, sum(values)]))


def round_figures(found: Any) -> Any:
    """Return figures with at most four decimals, in nested dicts and lists."""
    if isinstance(found, dict):
        return {key: round_figures(value) for key, value in found.items()}
    if isinstance(found, list):
        return [round_figures(value) for value in found]
    if isinstance(found, float):
        return round(found, 4)
    return found


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, nargs="+", default=[3])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--only", choices=("spin", "script"), help="measure one side")
    parser.add_argument("--prepared", type=Path, help="folder of the warmed-up policy; it is filled if it is empty")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="overrides of spin's runs")
    arguments = parser.parse_args()
    # The package has another name on CPUs.
    vllm = packages_distributions()["vllm"][0]
    versions = {**list_versions(), "vllm": version(vllm), "ray": version("ray")}
    written: dict[str, Any] = {"machine": describe_machine(), "versions": versions, "runs": {}}
    with tempfile.TemporaryDirectory(prefix="spin-whole-") as temporary:
        folder = arguments.prepared or Path(temporary)
        policy, stop = prepare(folder)
        for iterations in arguments.iterations:
            draws = []
            for number in range(arguments.draws):
                work = Path(temporary) / f"{iterations}-{number}"
                work.mkdir()
                draw = {}
                if arguments.only != "script":
                    draw["spin"] = run_spin(work / "spin", policy, iterations, arguments.overrides)
                    print_phases(draw["spin"]["phases"])
                if arguments.only != "spin":
                    draw["script"] = run_script(folder, work / "script", policy, stop, iterations)
                for name, found in draw.items():
                    print(f"{name}: {found['cpu_seconds']:.1f} CPU s, {found['seconds']:.1f} s, {found['result']}")
                draws.append(draw)
            entry: dict[str, Any] = {"draws": draws}
            if arguments.only is None:
                entry["ratios"] = summarise(draws)
                print(f"{iterations} iterations: {entry['ratios']}", flush=True)
            written["runs"][str(iterations)] = entry
            arguments.json.write_text(json.dumps(round_figures(written), indent=2) + "\n")


if __name__ == "__main__":
    main()
