"""`spin check`: what a run would be refused for, and what it would take, without starting it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spin.data.builtin import write_tiny_model
from spin.run_dir.files import file_sha256
from tests.runs import SMALL

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""That of alignment-handbook/zephyr-7b-sft-full, as far as sizes go."""
MAIN = (
    "import shutil, collections; from spin.cli.main import main; "
    "shutil.disk_usage = lambda _: collections.namedtuple('u', 'total used free')(0, 0, {free} << 30); main()"
)


def tensors() -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a Mistral-7B."""
    yield from (
        ("model.embed_tokens.weight", [32000, 4096]),
        ("lm_head.weight", [32000, 4096]),
        ("model.norm.weight", [4096]),
    )
    parts = {
        "self_attn.q_proj": [4096, 4096],
        "self_attn.k_proj": [1024, 4096],
        "self_attn.v_proj": [1024, 4096],
        "self_attn.o_proj": [4096, 4096],
        "mlp.gate_proj": [14336, 4096],
        "mlp.up_proj": [14336, 4096],
        "mlp.down_proj": [4096, 14336],
        "input_layernorm": [4096],
        "post_attention_layernorm": [4096],
    }
    yield from ((f"model.layers.{layer}.{name}.weight", shape) for layer in range(32) for name, shape in parts.items())


def write_mistral(folder: Path) -> None:
    """Write a 7B model with a tiny tokenizer; its 14 GB of weights are a hole in the file."""
    write_tiny_model(folder, 0)
    (folder / "config.json").write_text(json.dumps(MISTRAL))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors():
        start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def check(*words: str, cwd: Path, free: int = 1 << 10) -> subprocess.CompletedProcess[str]:
    """`spin check` on a disk of which `free` GiB are free."""
    command = [sys.executable, "-c", MAIN.format(free=free), "check", *words]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with model and data, and the words of the command."""
    folder = tmp_path_factory.mktemp("paper")
    write_mistral(folder / "model")
    (folder / "model" / "additional_chat_templates").mkdir()
    (folder / "model" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}{{ messages }}")
    for name, count in (("train", 6), ("test", 2)):
        rows = [
            [
                {"role": role, "content": f"{name} {role} {turn} {row}"}
                for turn in range(2)
                for role in ("user", "assistant")
            ]
            for row in range(count)
        ]
        (folder / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"prompt": messages[0]["content"], "prompt_id": "x", "messages": messages}) + "\n"
                for messages in rows
            )
        )
    return folder, ["experiment=spin_paper", "model.path=model", "data.path=train.jsonl", "data.eval_path=test.jsonl"]


def test_the_papers_recipe_passes_every_check_and_says_what_it_takes(paper: tuple[Path, list[str]]) -> None:
    folder, words = paper
    done = check(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "7,241.7 M weights" in done.stdout
    assert "on one assumed A100 of 80.0 GiB" in done.stdout
    assert "plan for 8 assumed A100 of 80.0 GiB" in done.stdout
    assert "generation 13.5 GiB and 50.5 GiB of cache" in done.stdout  # 2 bytes a weight; 0.8 × 80 less that
    assert (
        "215.8 GiB still to be written (4 policies of 27.0 GiB, 2 trainer states of 54.0 GiB" in done.stdout
    )  # 4 bytes a weight; with RMSprop's moments 8
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith(" iteration")] == list("0123")
    assert done.stdout.count("note: the tokenizer has several chat templates (default, tool_use)") == 1
    assert "6 of 6 rows of train.jsonl as messages; columns not used: prompt_id" in " ".join(done.stdout.split())
    assert not (folder / "outputs").exists()


def test_the_papers_recipe_needs_engines_and_trainers_to_share_its_gpus(paper: tuple[Path, list[str]]) -> None:
    folder, words = paper
    done = check(*words, "cluster.placement=sequential", cwd=folder)
    assert done.returncode == 2
    assert "16 GPUs wanted" in done.stderr


def test_the_papers_recipe_is_refused_where_the_disk_is_too_small(paper: tuple[Path, list[str]]) -> None:
    folder, words = paper
    done = check(*words, cwd=folder, free=200)
    assert done.returncode == 2
    assert done.stderr == (
        "spin: run_dir=outputs/spin_paper has 200.0 GiB free, but 215.8 GiB are to be written: 4 policies of 27.0 GiB, "
        "2 trainer states of 54.0 GiB, "
        "0.0 MiB of samples and pairs; free some or choose another disk, "
        "or save no trainer states (training.checkpoint_every=0)\n"
    )
    without = check(*words, "training.checkpoint_every=0", cwd=folder, free=200)
    assert without.returncode == 0, without.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.path=none.jsonl"], "none.jsonl: no such file"),
        (["run_dir=full"], "run_dir=full is no run (no ledger) and not empty"),
        (["run_dir=file/run"], "run_dir=file/run cannot be written"),
        (["trainin.epochs=2"], "did you mean"),
        (["model.chat_template_kwargs.enable_thinking=false"], "the tokenizer's chat template reads no such variable"),
    ],
)
def test_what_a_run_would_be_refused_for_is_one_line(tmp_path: Path, words: list[str], expected: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    done = check("experiment=quickstart", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_and_is_not_touched_and_more_iterations_go_at_its_own_pace(
    undisturbed: Path,
) -> None:
    before = {path: file_sha256(path) for path in undisturbed.rglob("*") if path.is_file()}
    done = check(*SMALL, f"run_dir={undisturbed}", cwd=undisturbed.parent)
    assert done.returncode == 0, done.stderr
    assert "nothing is left" in done.stdout
    assert "training: layout" not in done.stdout
    more = check(*SMALL, f"run_dir={undisturbed}", "iterations=3", cwd=undisturbed.parent)
    assert "at the rate measured in this run where there is one" in more.stdout
    assert "1 policy of" in more.stdout
    assert "training: layout shared, the fast layers of spin" in more.stdout
    other = check(*SMALL, f"run_dir={undisturbed}", "training.batch_size=16", cwd=undisturbed.parent)
    assert "holds a run with another config: training.batch_size=16 (was 32)" in other.stderr
    assert {path: file_sha256(path) for path in undisturbed.rglob("*") if path.is_file()} == before
