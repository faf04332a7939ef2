"""The prepared sets: written once, and made again when they were lost or altered."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import KtoObjective, SpinObjective
from spin.config.policy_gradient import PpoObjective
from spin.config.run import RunConfig
from spin.config.training import WarmupConfig
from spin.data.builtin import write_tiny_model
from spin.data.chat_renderer import Renderer
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.data.renderer_setup import load_renderer
from spin.errors import CheckpointError, ConfigError
from spin.feedback.policy_gradient_checks import check_pretraining
from spin.preflight.prepare_data import check_ratings_usable, find_labelled_source, prepare_data
from spin.report.console import Reporter
from spin.run_dir.files import file_sha256
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore


def config_of(run_dir: Path, data: str = "builtin:letters") -> RunConfig:
    """20 training rows, 5 held-out rows, and a warm-up on the first 3 training rows."""
    return RunConfig(
        str(run_dir),
        model=ModelConfig("builtin:tiny"),
        data=DataConfig(data, limit=20, eval_path="builtin:letters", eval_split="test", eval_limit=5),
        generation=GenerationConfig(max_tokens=32, max_prompt_tokens=64),
        feedback=FeedbackConfig(),
        objective=SpinObjective(),
        warmup=WarmupConfig(enabled=True, limit=3),
    )


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    write_tiny_model(tmp_path / "model", 0)
    return load_renderer(config_of(tmp_path).model, tmp_path / "model")


class Launch:
    """What one launch in a run directory needs, and what it printed."""

    def __init__(self, root: Path, renderer: Renderer) -> None:
        self.layout = RunLayout(root)
        self.ledger = Ledger(self.layout.ledger)
        self.printed = io.StringIO()
        console = Console(file=self.printed, soft_wrap=True)
        self.reporter = Reporter(self.layout.metrics, self.layout.now, console)
        self.renderer = renderer

    def prepare(self, config: RunConfig) -> bool:
        """Prepare the data and record them; true when this was the first launch."""
        store = RunStore(self.layout.root)
        facts = prepare_data(config, [config], store, self.ledger, self.reporter, self.renderer)
        if facts is not None:
            self.ledger.append("data", **facts)
        return facts is not None


def test_the_first_launch_writes_the_sets_and_a_resume_makes_lost_ones_again(
    tmp_path: Path, renderer: Renderer
) -> None:
    launch = Launch(tmp_path / "run", renderer)
    config = config_of(tmp_path / "run")
    assert launch.prepare(config)
    facts = launch.ledger.get("data") or {}
    assert {name: facts[name] for name in ("train", "heldout", "warmup")} == {"train": 20, "heldout": 5, "warmup": 3}
    assert "data: 20 of 20 rows of builtin:letters" in launch.printed.getvalue()
    launch.layout.prompts("train").unlink()
    launch.layout.prompts("warmup").write_bytes(b"torn")
    assert not launch.prepare(config)
    assert {name: file_sha256(launch.layout.prompts(name)) for name in facts["sha256"]} == facts["sha256"]
    assert launch.printed.getvalue().count("is gone or was altered; it is made again from the data") == 2
    assert "heldout.parquet is gone" not in launch.printed.getvalue()


def test_a_lost_set_whose_data_have_changed_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    data = tmp_path / "data.jsonl"
    rows = [json.dumps({"prompt": f"sort {row}", "completion": "abc"}) for row in range(20)]
    data.write_text("\n".join(rows))
    launch = Launch(tmp_path / "run", renderer)
    config = config_of(tmp_path / "run", str(data))
    assert launch.prepare(config)
    data.write_text("\n".join(rows[1:]))
    launch.layout.prompts("train").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="train.parquet is gone or was altered, and the data it came from give"):
        launch.prepare(config)
    assert launch.layout.prompts("train").read_bytes() == b"torn"


def test_a_schedule_has_at_most_one_labelled_set(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    labelled = replace(config, feedback=FeedbackConfig(rows=None, path="a.jsonl"))
    assert find_labelled_source([config, config]) is None
    assert find_labelled_source([config, labelled, labelled]) == labelled.feedback
    limited = replace(config, feedback=FeedbackConfig(rows=None, path="a.jsonl", limit=5))
    with pytest.raises(ConfigError, match=r"names 2 labelled sets \(a.jsonl, a.jsonl\)"):
        find_labelled_source([labelled, limited])


def test_ratings_are_refused_in_an_iteration_with_an_objective_for_pairs(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    rated = replace(config, feedback=FeedbackConfig(rows=None, path="a.jsonl"))
    check_ratings_usable([config, replace(rated, objective=KtoObjective())])
    with pytest.raises(ConfigError, match="iteration 1: feedback.path=a.jsonl holds ratings, which objective=spin"):
        check_ratings_usable([config, rated])


def test_pretraining_text_is_cut_into_pieces_without_a_template(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abcdefgh" * 20, "", "abc")))
    config = config_of(tmp_path / "run")
    config.data.ptx.path = str(path)
    launch = Launch(tmp_path / "run", renderer)
    assert launch.prepare(config)
    rows = read_rows(launch.layout.prompts("ptx"), Prompt)
    pieces = [[*row.prompt_ids, *row.completion_ids] for row in rows]
    tokenizer = renderer.tokenizer
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("abcdefgh" * 20, "abc")]
    expected = [[*renderer.opening_ids, *ids, tokenizer.eos_token_id] for ids in texts]
    # At most 32 + 64 tokens; the pieces of the first text put together are the text.
    assert max(len(piece) for piece in pieces) == 96
    assert all(len(row.prompt_ids) == 1 and row.completion_ids for row in rows)
    assert [token for piece in pieces[:-1] for token in piece] == expected[0]
    assert pieces[-1] == expected[1]
    assert "2 of 3 rows of" in launch.printed.getvalue()
    assert "1 without text" in launch.printed.getvalue()


def test_pretraining_rows_may_have_prompts_and_answers(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Sort: ba", "completion": "ab"}) + "\n")
    config = config_of(tmp_path / "run")
    config.data.ptx.path = str(path)
    launch = Launch(tmp_path / "run", renderer)
    launch.prepare(config)
    [row] = read_rows(launch.layout.prompts("ptx"), Prompt)
    assert (row.prompt_text, row.completion_text) == ("Sort: ba", "ab")


def test_a_limit_takes_the_first_pretraining_rows_or_ground_truths(tmp_path: Path, renderer: Renderer) -> None:
    config = config_of(tmp_path / "truths")
    config.data.ptx.limit = 4
    launch = Launch(tmp_path / "truths", renderer)
    launch.prepare(config)
    assert read_rows(launch.layout.prompts("ptx"), Prompt) == read_rows(launch.layout.prompts("train"), Prompt)[:4]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abcdefgh" * 20, "abc")))
    config = config_of(tmp_path / "text")
    config.data.ptx.path = str(path)
    config.data.ptx.limit = 1
    launch = Launch(tmp_path / "text", renderer)
    launch.prepare(config)
    # The text is cut into two pieces, of which the first is used.
    [row] = read_rows(launch.layout.prompts("ptx"), Prompt)
    assert len(row.prompt_ids) + len(row.completion_ids) == 96


def test_pretraining_text_that_no_iteration_uses_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.data.ptx.path = "text.jsonl"
    with pytest.raises(ConfigError, match="data.ptx.path=text.jsonl is not used: it needs objective=ppo with"):
        check_pretraining([config, config])
    trained = replace(config, objective=PpoObjective(ptx_weight=0.1))
    check_pretraining([config, trained])
    config.data.ptx.path = None
    config.data.ptx.limit = 5
    with pytest.raises(ConfigError, match="data.ptx.limit=5 is not used: it needs objective=ppo with"):
        check_pretraining([config, config])
    check_pretraining([config, trained])
