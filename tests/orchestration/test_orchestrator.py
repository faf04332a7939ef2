"""Real runs with vLLM, Ray and training: one undisturbed, one killed several times.

Other faults are in test_faults.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from spin.data.parquet import read_rows
from spin.data.records import Pair, Prompt, Sample
from spin.models.policy import policy_digest
from spin.run_dir.store import RunStore
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow


def test_every_prompt_is_answered_once_and_both_halves_carry_its_tokens(undisturbed: Path) -> None:
    prompts = {p.prompt_id: p for p in read_rows(undisturbed / "prompts" / "train.parquet", Prompt)}
    for iteration in ("000", "001"):
        folder = undisturbed / "iterations" / iteration
        samples = [row for path in sorted(folder.glob("samples/*.parquet")) for row in read_rows(path, Sample)]
        assert sorted(s.prompt_id for s in samples) == sorted(prompts)
        end = 2
        for sample in samples:
            assert (sample.completion_ids[-1] == end) == (
                sample.finish_reason == "stop"
            )  # a cut sample gets no end of sequence
            assert end not in sample.completion_ids[:-1]
        generated = {s.prompt_id: s.completion_ids for s in samples}
        pairs = [row for path in sorted(folder.glob("pairs/*.parquet")) for row in read_rows(path, Pair)]
        assert len({p.prompt_id for p in pairs}) == len(pairs) > 0
        for pair in pairs:
            assert pair.prompt_ids == prompts[pair.prompt_id].prompt_ids
            assert pair.rejected_ids == generated[pair.prompt_id]  # trained on as sampled
            assert pair.reference_rejected_logp == pytest.approx(pair.sampler_rejected_logp, abs=1e-3)


def test_the_opponent_of_an_iteration_is_what_the_one_before_promoted(undisturbed: Path) -> None:
    facts = {record["unit"]: record for record in ledger(undisturbed)}
    chain = ["start/policy", "iterations/000/policy", "iterations/001/policy"]
    assert facts[chain[1]]["opponent"] == facts[chain[0]]["digest"]
    assert facts[chain[2]]["opponent"] == facts[chain[1]]["digest"]
    assert len({facts[unit]["digest"] for unit in chain}) == 3
    assert all(facts[unit]["digest"] == policy_digest(undisturbed / unit) for unit in chain)


def test_step_0_of_every_iteration_has_the_loss_of_a_player_that_is_its_opponent(undisturbed: Path) -> None:
    steps = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    first = [
        row for row in steps if row["kind"] == "train" and row["step"] == 1 and row["unit"].startswith("iterations")
    ]
    assert [row["loss"] for row in first] == pytest.approx([0.6931472] * 2, abs=1e-4)


def test_a_run_killed_between_any_two_units_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    for lines in (5, 11, 18):  # in the warm start, after its benchmark, later; test_faults.py kills at random
        driver = subprocess.Popen(
            command(run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while len(ledger(run_dir)) < lines and driver.poll() is None:
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    run(run_dir)
    assert outcome(run_dir) == outcome(undisturbed)
    units = [record["unit"] for record in ledger(run_dir)]
    assert len([unit for unit in units if unit.split("/")[-1].isdigit()]) == len(
        {unit for unit in units if unit.split("/")[-1].isdigit()}
    )


def test_each_iteration_may_have_an_objective_of_its_own_and_replays_the_pairs_before_it(
    undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "four"
    schedule = (
        "schedule={1:[objective=ipo,objective.reference=opponent],"
        "2:[objective=kto,objective.reference=opponent],3:[objective=slic,replay=0]}"
    )
    start = [
        f"model.path={undisturbed}/start/policy",
        "warmup.enabled=false",
        "iterations=4",
        "replay=1",
        "generation.samples_per_prompt=2",
        schedule,
    ]
    run(run_dir, *start)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    first = [row["loss"] for row in steps if row["kind"] == "train" and row["step"] == 1]
    assert first[:3] == pytest.approx([0.6931472, 25.0, 0.5], rel=1e-3)  # ln 2, 1/(4β²), half of the weight
    configs = [yaml.safe_load((run_dir / "iterations" / f"{i:03d}" / "config.yaml").read_text()) for i in range(4)]
    assert [config["objective"]["name"] for config in configs] == ["spin", "ipo", "kto", "slic"]
    pairs = [
        [row for path in sorted(run_dir.glob(f"iterations/{i:03d}/pairs/*.parquet")) for row in read_rows(path, Pair)]
        for i in range(4)
    ]
    assert [sorted({pair.iteration for pair in rows}) for rows in pairs] == [[0], [0, 1], [1, 2], [3]]
    own, replayed = ([pair for pair in rows if pair.iteration == 0] for rows in pairs[:2])
    assert [(p.prompt_id, p.sample_index, p.rejected_ids) for p in own] == [
        (p.prompt_id, p.sample_index, p.rejected_ids) for p in replayed
    ]
    assert all(
        a.reference_chosen_logp != b.reference_chosen_logp for a, b in zip(own, replayed, strict=True)
    )  # scored again, by the opponent of now
    truths: dict[int, set[float]] = {}
    for pair in pairs[1]:
        truths.setdefault(pair.prompt_id, set()).add(pair.reference_chosen_logp)
    assert all(len(scores) == 1 for scores in truths.values())
    changed = subprocess.run(
        command(run_dir, *start[:-1], "schedule={1:[objective=dpo]}"), capture_output=True, text=True, timeout=100
    )
    assert changed.returncode == 2
    assert 'iteration 1: objective.name="dpo" (was "ipo")' in changed.stderr


def test_labelled_pairs_and_ratings_are_trained_on_without_generation(undisturbed: Path, tmp_path: Path) -> None:
    truths = [
        (prompt.prompt_text, prompt.completion_text)
        for prompt in read_rows(undisturbed / "prompts" / "train.parquet", Prompt)
    ]
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "chosen": r, "rejected": f"Sure! {r}"}) + "\n" for p, r in truths)
    )
    rated = [
        {"prompt": p, "completion": c, "label": label}
        for p, r in truths
        for c, label in ((r, True), (f"Sure! {r}", False))
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    start = [
        f"model.path={undisturbed}/start/policy",
        "warmup.enabled=false",
        "iterations=2",
        "feedback=dataset",
        f"data.path={tmp_path}/rated.jsonl",
    ]
    mixed = "schedule={1:[feedback=ground_truth,feedback.path=${data.path}]}"
    run(tmp_path / "ratings", *start, "objective=kto", mixed)
    assert not (tmp_path / "ratings" / "iterations" / "000" / "samples").exists()
    assert [path.name for path in sorted((tmp_path / "ratings" / "iterations" / "001" / "pairs").iterdir())][0:2] == [
        "ratings.parquet",
        "shard-00000.parquet",
    ]
    run(
        tmp_path / "pairs",
        *start[:-2],
        "iterations=1",
        "feedback=dataset",
        f"data.path={tmp_path}/pairs.jsonl",
        "objective=dpo",
    )
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert steps[0]["loss"] == pytest.approx(0.6931472, abs=1e-4)
    assert steps[-1]["rewards/margins"] > 0


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_training_workers_log_the_losses_of_one_and_promote_policies_that_load(
    undisturbed: Path, tmp_path: Path, sharding: str
) -> None:
    from transformers import AutoModelForCausalLM

    run(tmp_path / "two", "training.workers=2", f"training.sharding={sharding}")

    def losses(run_dir: Path) -> list[float]:
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if row["kind"] == "train" and row["unit"] == "start/policy"]

    assert losses(tmp_path / "two") == pytest.approx(losses(undisturbed), rel=1e-3)
    shapes = [
        {
            name: tensor.shape
            for name, tensor in AutoModelForCausalLM.from_pretrained(run_dir / "iterations" / "001" / "policy")
            .state_dict()
            .items()
        }
        for run_dir in (tmp_path / "two", undisturbed)
    ]
    assert shapes[0] == shapes[1]


def test_two_engines_give_the_shards_of_one(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "two", "generation.replicas=2")
    assert outcome(tmp_path / "two") == outcome(undisturbed)


def test_answers_scored_beside_the_next_generation_are_those_of_a_run_that_waits_for_its_stop_rule(
    undisturbed: Path, tmp_path: Path
) -> None:
    run(tmp_path / "waits", "stop.patience=2")
    assert outcome(tmp_path / "waits") == outcome(undisturbed)
    for run_dir, beside in ((undisturbed, True), (tmp_path / "waits", False)):
        units = [record["unit"] for record in ledger(run_dir)]
        # The line of the config is the first of an iteration.
        assert (units.index("iterations/001/config") < units.index("iterations/000/benchmark")) is beside


def test_training_beside_generation_gives_the_weights_of_one_after_the_other_also_when_driver_and_scorer_die(
    undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "split"
    split = ["cluster.placement=split", "generation.replicas=2", "training.checkpoint_every=1"]

    def shards() -> int:
        return len([record for record in ledger(run_dir) if record["unit"].startswith("iterations/000/pairs/")])

    driver = subprocess.Popen(
        command(run_dir, *split), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while shards() < 2 and driver.poll() is None:
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert "iterations/000/policy" not in [record["unit"] for record in ledger(run_dir)]
    driver = subprocess.Popen(command(run_dir, *split), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "iterations/000/policy" not in [record["unit"] for record in ledger(run_dir)]:
        time.sleep(0.02)
        assert driver.poll() is None, driver.communicate()
    scoring: list[psutil.Process] = []
    while not scoring:  # the trainer waits for what it scores
        assert driver.poll() is None, driver.communicate()
        scoring = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if title(process).startswith("ray::TrainingWorker.score_rows")
        ]
    scoring[0].kill()
    told, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors
    assert "a training worker died" in told
    assert outcome(run_dir) == outcome(undisturbed)
    facts = {record["unit"]: record for record in ledger(run_dir)}
    assert facts["iterations/001/samples"]["beside"]
    assert "iteration 1 generate" in told


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing, when it is gone."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


TURNS = """
from spin.cluster.environment import prepare_ray
prepare_ray(None)  # before Ray is imported
from spin.cluster.worker_groups import WorkerGroups
from spin.cli.main import main
wake, pool = WorkerGroups._wake, WorkerGroups.make_generator_pool
logps, train = WorkerGroups.run_on_trainers, WorkerGroups.run_training
def noted(name, call, is_turn=False):
    def wrapped(self, *args, **kwargs):
        before = self._awake
        out = call(self, *args, **kwargs)
        if not is_turn: print("CALL", name, flush=True)
        elif self._awake != before: print("TURN", self._awake.value, flush=True)
        return out
    return wrapped
WorkerGroups._wake = noted("turn", wake, True)
WorkerGroups.make_generator_pool = noted("generate", pool)
WorkerGroups.probe_engines = noted("probe", WorkerGroups.probe_engines)
def trainers(self, call, jobs):
    for result in logps(self, call, jobs):
        print("CALL score", flush=True)
        yield result
def training(self, job, beside, wanted):
    for event in train(self, job, beside, wanted):
        print("CALL train", flush=True)
        yield event
WorkerGroups.run_on_trainers, WorkerGroups.run_training = trainers, training
main()
"""


def test_engine_and_trainer_that_share_a_device_never_work_in_each_others_turn(
    undisturbed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TURNS, *command(tmp_path / "run", "cluster.placement=colocated")[3:]],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(undisturbed)
    told = [line for line in done.stdout.splitlines() if line.startswith(("CALL", "TURN"))]
    turns = [line for at, line in enumerate(told) if at == 0 or told[at - 1] != line]
    of = {"generator": {"generate", "probe"}, "trainer": {"score", "train"}}
    awake = "generator"
    for line in turns:
        kind, what = line.split()
        if kind == "TURN":
            awake = what
        else:
            assert what in of[awake], turns
    assert turns[:4] == ["TURN trainer", "CALL train", "TURN generator", "CALL probe"]
    assert turns.count("TURN generator") >= 5


def test_the_same_command_again_says_that_the_run_is_complete_and_another_config_is_refused(undisturbed: Path) -> None:
    before = outcome(undisturbed)
    assert "the run is complete" in run(undisturbed).stdout
    refused = subprocess.run(command(undisturbed, "objective.beta=2.0"), capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert "objective.beta=2.0 (was 5.0)" in refused.stderr
    assert outcome(undisturbed) == before


def test_a_fresh_engine_on_the_last_checkpoint_gives_the_greedy_answers_of_the_engine_that_was_swapped(
    undisturbed: Path,
) -> None:
    from spin.generation.engine import Engine
    from spin.generation.requests import Request
    from spin.models.loading import load_policy
    from spin.models.policy import Policy

    folder = undisturbed / "iterations" / "001"
    load_policy(folder / "policy")  # transformers, every key checked
    prompts = read_rows(undisturbed / "prompts" / "heldout.parquet", Prompt)
    engine = Engine("float32", 96, kv_cache_gib=0.25)
    answers = engine.generate(
        Policy(str(folder / "policy"), policy_digest(folder / "policy")),
        [Request(p.prompt_ids, 0) for p in prompts],
        32,
        0.0,
        1.0,
        [2],
    )
    assert [a.token_ids for a in answers] == [
        row.completion_ids for row in read_rows(folder / "heldout" / "greedy.parquet", Sample)
    ]


def test_a_sweep_gives_each_value_a_run_directory_of_its_own(tmp_path: Path) -> None:
    run(tmp_path, "iterations=1", "data.limit=16", "-m", "seed=1,2")
    digests = {policy_digest(tmp_path / f"seed={seed}" / "iterations" / "000" / "policy") for seed in (1, 2)}
    assert len(digests) == 2


def test_the_report_of_a_real_run_has_the_figures_of_its_benchmark_and_every_stage(undisturbed: Path) -> None:
    from spin.report.run_report import collect

    report = collect(RunStore(undisturbed), "run")
    assert [policy.label for policy in report.policies] == ["start", "iteration 0", "iteration 1"]
    for policy, folder in zip(report.policies, ("start", "iterations/000", "iterations/001"), strict=True):
        written = json.loads((undisturbed / folder / "benchmark.json").read_text())
        assert policy.metrics["nll"] == written["nll"]
        assert policy.answers is not None
        assert sum(policy.answers["greedy_right"]) / 20 == policy.metrics["exact_match_greedy"]
    assert {kind for policy in report.policies[1:] for kind in policy.seconds} == {
        "generate",
        "score",
        "train",
        "benchmark",
    }
    starts = [span.start for span in report.spans]
    assert starts == sorted(starts)
    assert report.spans[-1].end - report.spans[0].start <= report.total_seconds
    again = subprocess.run(
        [sys.executable, "-c", "from spin.cli.main import main; main()", "report", f"run_dir={undisturbed}"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert again.returncode == 0, again.stderr
    assert (undisturbed / "report" / "training.png").exists()
