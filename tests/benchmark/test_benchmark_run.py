"""One real run with all measurements switched on, and what the other commands read from it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spin.models.policy import policy_digest
from spin.run_dir.files import file_sha256

pytestmark = pytest.mark.slow
SMALL = [
    "experiment=quickstart",
    "iterations=4",
    "data.limit=96",
    "data.eval_limit=30",
    "warmup.limit=320",
    "warmup.training.epochs=1",
    "generation.shard_size=32",
]
FULL = [
    "baseline=sft",
    "stop.metric=exact_match_greedy",
    "stop.patience=2",
    "tracking=tensorboard",
    "benchmark.samples=2",
]


def spin(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from spin.cli.main import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(run_dir: Path) -> dict[str, Any]:
    """Every file of a run and its content, but for its benches and the process id in the lock."""
    return {
        str(path.relative_to(run_dir)): file_sha256(path)
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name != "lock" and "bench" not in path.relative_to(run_dir).parts
    }


def figures(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "benchmark.json").read_text())
    values.pop("speed")
    return values


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run with greedy answers that are always wrong: it stops after two of four iterations."""
    run_dir = tmp_path_factory.mktemp("run") / "full"
    return run_dir, spin("run", *SMALL, *FULL, f"run_dir={run_dir}")


def test_the_run_stops_when_nothing_improves_and_its_best_policy_is_linked(done: tuple[Path, str]) -> None:
    run_dir, output = done
    assert "stopped after iteration 1: exact_match_greedy has not improved (stop.patience=2)" in output
    assert sorted(path.name for path in run_dir.glob("iterations/*")) == ["000", "001"]
    assert os.readlink(run_dir / "policy_best") == "start/policy"  # none is better than the start
    assert "best: start by exact_match_greedy" in output
    assert "state      complete" in spin("status", f"run_dir={run_dir}")


def test_the_same_command_again_does_nothing_and_more_patience_goes_on(done: tuple[Path, str], tmp_path: Path) -> None:
    run_dir, _ = done
    before = files(run_dir)
    assert "raise stop.patience to go on" in spin("run", *SMALL, *FULL, f"run_dir={run_dir}")
    assert files(run_dir) == before
    shutil.copytree(run_dir, tmp_path / "copy", symlinks=True)
    assert "stopped after iteration 2" in spin("run", *SMALL, *FULL, f"run_dir={tmp_path / 'copy'}", "stop.patience=3")
    assert sorted(path.name for path in (tmp_path / "copy").glob("baseline/*")) == ["000", "001", "002"]
    for stage in ("iterations/001", "baseline/001"):  # what was there stays
        assert policy_digest(tmp_path / "copy" / stage / "policy") == policy_digest(run_dir / stage / "policy")


def test_the_baseline_takes_as_many_steps_from_the_same_start_in_a_chain_of_its_own(done: tuple[Path, str]) -> None:
    facts = {record["unit"]: record for record in map(json.loads, (done[0] / "ledger.jsonl").read_text().splitlines())}
    assert facts["baseline/000/policy"]["opponent"] == facts["start/policy"]["digest"]
    assert facts["baseline/001/policy"]["opponent"] == facts["baseline/000/policy"]["digest"]
    for index in ("000", "001"):
        assert facts[f"baseline/{index}/policy"]["steps"] == facts[f"iterations/{index}/policy"]["steps"]
    rows = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    rates = {
        unit: {row["learning_rate"] for row in rows if row["unit"] == f"{unit}/000/policy"}
        for unit in ("iterations", "baseline")
    }
    assert rates["iterations"] == rates["baseline"] == {3e-5}
    for compared in ("iteration 1 minus start", "baseline 1 minus start", "iteration 1 minus baseline 1"):
        assert f"{compared}: EM" in done[1]


def test_every_policy_has_a_row_with_intervals_around_its_figures(done: tuple[Path, str]) -> None:
    with (done[0] / "benchmark.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["policy"] for row in rows] == ["start", "iteration 0", "iteration 1", "baseline 0", "baseline 1"]
    for row in rows:
        assert float(row["nll_low"]) < float(row["nll"]) < float(row["nll_high"])
        assert float(row["seconds_benchmark"]) > 0
        assert float(row["peak_memory_gib_engine"]) > 0.1
    assert float(rows[0]["kl_to_start"]) == 0.0
    assert float(rows[1]["kl_to_start"]) != 0.0
    assert (rows[0]["win_rate"], rows[0]["generation_tokens_per_second"]) == ("", "")
    assert float(rows[1]["generation_tokens_per_second"]) > 0


def test_the_card_of_each_policy_has_its_figures_and_its_digest(done: tuple[Path, str]) -> None:
    for stage in ("start", "iterations/001", "baseline/001"):
        card = (done[0] / stage / "policy" / "README.md").read_text()
        assert policy_digest(done[0] / stage / "policy") in card
        assert f"{figures(done[0] / stage)['nll']:.3f}" in card


def test_tensorboard_has_the_losses_of_the_whole_run(done: tuple[Path, str]) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed (pip install tensorboard)",
    )
    events = accumulator.EventAccumulator(str(done[0] / "tracking" / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train" and row["unit"].startswith("iterations")]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert len(events.Scalars("benchmark/nll")) == 3


def test_a_bench_beside_the_run_gives_the_runs_own_figures_and_writes_nothing_of_it(
    done: tuple[Path, str], tmp_path: Path
) -> None:
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is not installed (pip install 'spin-selfplay[lm_eval]')"
    )
    rows = [
        {"question": f"Sort: {word}", "answer": f"The letters in order.\n#### {len(word)}"}
        for word in ("ba", "cab", "dcba", "a")
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "counting.yaml").write_text(
        f"task: counting\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/test.jsonl\n"
        "output_type: generate_until\ntest_split: test\n"
        "doc_to_text: 'Q: {{question}}\\nA:'\ndoc_to_target: \"{{answer.split('#### ')[-1]}}\"\n"
        "generation_kwargs:\n  until: ['Q:']\n  max_gen_toks: 8\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\nnum_fewshot: 0\n"
    )
    (tmp_path / "tasks" / "choosing.yaml").write_text(
        f"task: choosing\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/test.jsonl\n"
        "output_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: 'Q: {{question}}\\nA:'\ndoc_to_choice: ['1', '2', '3', '4']\n"
        "doc_to_target: \"{{answer.split('#### ')[-1] | int - 1}}\"\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\nnum_fewshot: 0\n"
    )
    run_dir, _ = done
    before = files(run_dir)
    output = spin("bench", f"run_dir={run_dir}", "tasks=[counting,choosing]", f"include_path={tmp_path / 'tasks'}")
    assert files(run_dir) == before
    assert output.count("started in") == 1
    for stage in ("start", "iterations/000", "iterations/001", "baseline/000", "baseline/001"):
        assert figures(run_dir / "bench" / stage) == figures(run_dir / stage)
        found = json.loads((run_dir / "bench" / stage / "lm_eval.json").read_text())
        assert 0 <= found["counting"]["exact_match,none"] <= 1
        assert 0 <= found["choosing"]["acc,none"] <= 1
    assert "5 policies of" in spin(
        "bench", f"run_dir={run_dir}", "tasks=[counting,choosing]", f"include_path={tmp_path / 'tasks'}"
    )
    table = spin("table", f"run_dir=[{run_dir},{run_dir / 'bench'}]")
    assert "over 2 runs, of which some have the same seed (0)" in " ".join(table.split())  # a long path wraps


def test_the_harness_scores_a_continuation_as_the_trainer_does(done: tuple[Path, str]) -> None:
    from spin.config.training import Dtype, TrainingConfig
    from spin.generation.engine import Engine
    from spin.models.packing import Group
    from spin.models.policy import Policy
    from spin.training.trainer import Trainer

    folder = done[0] / "iterations" / "001" / "policy"
    policy = Policy(str(folder), policy_digest(folder))
    pairs = [([40, 41, 42], [50, 51]), ([43, 44], [52])]
    engine = Engine("float32", 96, kv_cache_gib=0.25)
    scores = engine.score(policy, pairs)
    expected = Trainer(Dtype.float32).score(policy, [Group(prompt, [rest]) for prompt, rest in pairs], TrainingConfig())
    assert [score for score, _ in scores] == pytest.approx([row[0] for row in expected], abs=1e-3)
