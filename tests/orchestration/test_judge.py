"""Real runs with a judge: a model on an engine, and the same model at an endpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from spin.config.groups import ModelConfig
from spin.config.judge import JudgeConfig
from spin.data.builtin import write_tiny_model
from spin.data.judge_records import Judgement
from spin.data.parquet import read_rows
from spin.data.records import Pair
from spin.data.renderer_setup import load_renderer
from spin.feedback.judge_template import Question
from spin.feedback.local_judge import LocalJudge
from tests.feedback.judge_server import JudgeServer, serve
from tests.runs import command, ledger, run

pytestmark = pytest.mark.slow
SETTINGS = (
    "feedback=judge",
    "feedback.judged.contestants=truth_and_samples",
    "feedback.judged.pairs=all",
    "feedback.judged.on_tie=keep",
    # The judge is a random model, for which labels are as likely as other tokens.
    "feedback.judged.min_mass=0",
    "judge.max_prompt_tokens=600",
    "generation.samples_per_prompt=2",
    "benchmark.enabled=false",
    "iterations=1",
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "model"
    write_tiny_model(folder, 5)
    return folder


@pytest.fixture
def server(judge: Path) -> Iterator[JudgeServer]:
    """An endpoint that answers as the judge, computed with transformers."""
    renderer = load_renderer(ModelConfig(str(judge)), judge)
    model = AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float32)
    renderer_of_questions = LocalJudge(renderer, JudgeConfig("opponent"))
    labels = {label: renderer.tokenizer.convert_tokens_to_ids(label) for label in ("1", "2")}

    def answer(messages: list[dict[str, str]]) -> dict[str, float]:
        ids = renderer_of_questions.render(Question(messages[0]["content"], messages[1]["content"]))
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        return {label: float(logps[token]) for label, token in labels.items()}

    with serve(answer) as state:
        yield state


def list_judgements(run_dir: Path) -> list[Judgement]:
    files = sorted(run_dir.glob("iterations/000/judgements/*.parquet"))
    assert len(files) == 3
    return [row for file in files for row in read_rows(file, Judgement)]


@pytest.fixture(scope="module")
def local(judge: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with the judge on an engine of its own, and what it printed."""
    run_dir = tmp_path_factory.mktemp("local") / "run"
    return run_dir, run(run_dir, *SETTINGS, f"judge.model={judge}").stdout


def test_every_two_answers_are_judged_and_the_pairs_have_the_preferences(local: tuple[Path, str]) -> None:
    run_dir, told = local
    judgements = list_judgements(run_dir)
    # 96 prompts with the truth and two samples: three comparisons each.
    assert len(judgements) == 96 * 3
    assert "288 judgements in" in told
    assert "judge bias" in told
    preferences = {(row.prompt_id, row.first, row.second): row.preference for row in judgements}
    num_pairs = 0
    for file in run_dir.glob("iterations/000/pairs/*.parquet"):
        for pair in read_rows(file, Pair):
            # The judge's preference for the chosen answer, whichever came first.
            known = []
            for (prompt_id, _, second), preference in preferences.items():
                if prompt_id == pair.prompt_id and second == pair.sample_index:
                    known.append(preference)
                if prompt_id == pair.prompt_id and (second == 1 and pair.sample_index == 0):
                    known.append(1 - preference)
            assert pair.preference in known
            num_pairs += 1
    assert num_pairs > 200


def test_overlapping_stages_give_the_same_judgements(judge: Path, local: tuple[Path, str], tmp_path: Path) -> None:
    run(tmp_path / "run", *SETTINGS, f"judge.model={judge}", "cluster.placement=split")
    assert list_judgements(tmp_path / "run") == list_judgements(local[0])


def test_an_endpoint_with_the_same_model_gives_the_same_shards_and_no_kill_pays_twice(
    server: JudgeServer, local: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    more = (*SETTINGS, f"judge.model={server.url}", "judge.name=tiny", "judge.concurrency=1", "judge.price=[1.0,1.0]")
    # Kill it with all its processes at different numbers of replies.
    kills = 2
    for number in range(kills):
        driver = subprocess.Popen(
            command(run_dir, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wanted = len(server.served) + 40 + 100 * number
        while driver.poll() is None and len(server.served) < wanted:
            time.sleep(0.01)
        assert driver.poll() is None
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    run(run_dir, *more)

    # Each session asks one question before the run. Of the others, only the one that was in flight
    # at a kill can be asked again.
    repeated = sum(server.served.values()) - len(server.served)
    assert repeated <= kills + kills
    facts = [record["judge"] for record in ledger(run_dir) if record["unit"].startswith("iterations/000/judgements/")]
    asked = [part["questions"] for part in facts if part]
    assert sum(asked) == 2 * 96 * 3

    expected = list_judgements(local[0])
    found = list_judgements(run_dir)
    assert [(row.prompt_id, row.first, row.second) for row in found] == [
        (row.prompt_id, row.first, row.second) for row in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.preference == pytest.approx(theirs.preference, abs=1e-4)
        assert ours.mass_forward == pytest.approx(theirs.mass_forward, abs=1e-4)
