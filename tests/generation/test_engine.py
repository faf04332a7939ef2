"""The real vLLM engine on a tiny real model: what it answers after an in-place swap."""

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from spin.config.run import RunConfig
from spin.config.training import Dtype, TrainingConfig
from spin.data.parquet import write_rows
from spin.data.records import Prompt
from spin.errors import CheckpointError
from spin.generation.engine import Engine
from spin.generation.requests import Request
from spin.generation.seeds import request_seed
from spin.generation.weight_reload import ReloadExtension
from spin.models.loading import load_policy
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.engine_check import verify_engines
from spin.report.console import Reporter
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore
from spin.training.trainer import Trainer
from tests.tiny import write_model


def test_a_seed_depends_on_what_the_sample_is_and_on_nothing_else() -> None:
    assert request_seed(0, "sample", 1, 2, 3) == request_seed(0, "sample", 1, 2, 3)
    others = {
        request_seed(0, "sample", 1, 2, 3),
        request_seed(1, "sample", 1, 2, 3),
        request_seed(0, "sample", 1, 3, 2),
        request_seed(0, "held", 1, 2, 3),
    }
    assert len(others) == 4


def test_an_altered_checkpoint_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    policy = write_model(tmp_path / "a", seed=1)
    with (tmp_path / "a" / "config.json").open("a") as handle:
        handle.write("\n")
    with pytest.raises(CheckpointError, match="was altered"):
        Engine("float32", 64).load(policy)


class EngineOnASharedGpu:
    """An engine of vLLM whose GPU lost memory to another program while it freed its own."""

    def sleep(self, level: int) -> None:
        raise AssertionError("Memory usage increased after sleeping.")


def test_an_engine_that_cannot_free_its_memory_names_the_other_program() -> None:
    engine = Engine("float32", 64, sleeps=True)
    engine._llm = EngineOnASharedGpu()
    with pytest.raises(RuntimeError, match="Memory usage increased.*another program took memory of this GPU"):
        engine.sleep()


@pytest.mark.slow
def test_greedy_answers_after_a_swap_are_those_of_a_fresh_engine_and_logps_are_transformers(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a", seed=1), write_model(tmp_path / "b", seed=2)
    requests = [Request([5 + i, 9, 30, 7], seed=i) for i in range(8)]

    def greedy(engine: Engine, policy: Policy) -> list[list[int]]:
        return [answer.token_ids for answer in engine.generate(policy, requests, 16, 0.0, 1.0, [0])]

    engine = Engine("float32", 64, kv_cache_gib=0.1)
    before, swapped = greedy(engine, first), greedy(engine, second)
    sampled = engine.generate(second, requests, 16, 1.0, 1.0, [0])
    reversed_order = engine.generate(second, requests[::-1], 16, 1.0, 1.0, [0])[::-1]
    assert [a.token_ids for a in sampled] == [a.token_ids for a in reversed_order]
    without_logps = engine.generate(second, requests, 16, 1.0, 1.0, [0], with_logps=False)
    assert [a.token_ids for a in without_logps] == [a.token_ids for a in sampled]
    assert all(math.isnan(a.logp) for a in without_logps)

    model = load_policy(Path(second.path))
    for request, answer in zip(requests, sampled, strict=True):
        ids = torch.tensor([request.prompt_ids + answer.token_ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(ids).logits[0], dim=-1)
        expected = sum(logps[3 + i, token].item() for i, token in enumerate(answer.token_ids))
        assert answer.logp == pytest.approx(expected, abs=1e-3)

    del engine
    gc.collect()  # two engines do not live in one process
    assert swapped == greedy(Engine("float32", 64, kv_cache_gib=0.1), second)
    assert swapped != before


class OneProcess:
    """Worker groups without Ray: a real engine and a real trainer, for `verify_engines`."""

    engines_use_gpus = False

    def __init__(self) -> None:
        self.engine, self.trainer = Engine("float32", 256, kv_cache_gib=0.1), Trainer(Dtype.float32)

    def probe_engines(self, policy: Policy, prompts: list[list[int]]) -> dict[int, list[tuple[list[int], float]]]:
        answers = self.engine.generate(
            policy, [Request(ids, number) for number, ids in enumerate(prompts)], 16, 1.0, 1.0, [0]
        )
        return {0: [(answer.token_ids, answer.logp) for answer in answers]}

    def score_completions(self, policy: Policy, groups: list[Group]) -> list[list[float]]:
        return self.trainer.score(policy, groups, TrainingConfig())


@pytest.fixture
def seats(tmp_path: Path) -> Iterator[RunContext]:
    """A run with one engine, and held-out prompts longer than a block of the prefix cache."""
    layout = RunLayout(tmp_path / "run")
    heldout = [Prompt(i, [1 + (i + j) % 250 for j in range(180)], [5, 0], "stop", "", "", None) for i in range(4)]
    write_rows(layout.prompts("heldout"), Prompt, heldout)
    worker_groups = OneProcess()
    config, store = RunConfig(str(layout.root)), RunStore(layout.root)
    reporter = Reporter(layout.metrics, layout.now)
    yield RunContext(config, [], layout, None, reporter, worker_groups, store)  # type: ignore[arg-type]
    worker_groups.engine._llm = None
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "a stale head", "a stale prefix cache", "weights that were never loaded"])
def test_an_engine_that_does_not_hold_the_promoted_weights_is_refused_before_it_answers(
    seats: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    first, second = (
        write_model(tmp_path / "a", seed=1, positions=256),
        write_model(tmp_path / "b", seed=2, positions=256),
    )
    verify_engines(seats, first)
    engine = seats.worker_groups.engine  # type: ignore[attr-defined]
    if fault == "a stale head":  # vLLM's own reload keeps the packed copy of a tied head
        monkeypatch.setattr(ReloadExtension, "spin_reload", lambda self, path: self.reload_weights(weights_path=path))
    if fault == "a stale prefix cache":
        monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    if fault == "weights that were never loaded":
        monkeypatch.setattr(ReloadExtension, "spin_reload", lambda self, path: None)
    if fault == "none":
        verify_engines(seats, second)
        return
    with pytest.raises(CheckpointError, match="does not hold .*/b: it differs from the trainer by"):
        verify_engines(seats, second)


@pytest.mark.slow
def test_a_checkpoint_of_which_a_tensor_is_missing_or_not_finite_is_refused_by_the_trainer(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from spin.models.policy import policy_digest
    from spin.models.policy_export import check_finite

    folder = tmp_path / "a"
    write_model(folder, seed=1)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    trainer = Trainer(Dtype.float32)
    with pytest.raises(CheckpointError, match=f"missing keys .*{name}"):
        trainer.load(Policy(str(folder), policy_digest(folder)), TrainingConfig())
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    trainer.load(Policy(str(folder), policy_digest(folder)), TrainingConfig())
    with pytest.raises(CheckpointError, match=f"weight {name} is not finite"):
        check_finite(trainer.model.named_parameters(), str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, RuntimeError), match="mismatch"):
        trainer.load(Policy(str(folder), policy_digest(folder)), TrainingConfig())


@pytest.mark.slow
def test_an_engine_that_wakes_takes_the_weights_before_the_cache_and_answers_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write_model(tmp_path / "a", seed=1), write_model(tmp_path / "b", seed=2)
    requests = [Request([5 + i, 9, 30, 7], seed=i) for i in range(4)]
    engine, calls = Engine("float32", 64, kv_cache_gib=0.1, sleeps=True), list[str]()
    engines = [engine]

    def greedy(policy: Policy) -> list[list[int]]:
        return [answer.token_ids for answer in engines[0].generate(policy, requests, 16, 0.0, 1.0, [0])]

    before, other = greedy(first), greedy(second)
    assert before != other
    told = {"sleep": "level", "wake_up": "tags"}

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            calls.append(
                f"{name} {kwargs.get(told.get(name, ''), args[0] if name == 'collective_rpc' else '')}".strip()
            )
            return call(*args, **kwargs)

        return wrapper

    for name in (*told, "collective_rpc", "reset_prefix_cache", "enqueue"):
        monkeypatch.setattr(engine._llm, name, noted(name, getattr(engine._llm, name)))
    engine.sleep()
    engine.sleep()
    assert calls == ["sleep 2"]
    assert greedy(second) == other  # the very policy it held: it has to be loaded again all the same
    assert calls == [
        "sleep 2",
        "wake_up ['weights']",
        "collective_rpc spin_reload",
        "wake_up ['kv_cache']",
        "reset_prefix_cache",
        "enqueue",
    ]
    engine.sleep()
    assert greedy(first) == before
    assert calls[6:] == calls[:6]
    monkeypatch.undo()
    engines.clear()
    del engine
    gc.collect()


PARTS = """
import json, sys
from pathlib import Path
from spin.generation.engine import Engine, Request
from spin.models.policy import Policy, policy_digest
if __name__ == "__main__":  # vLLM's workers import this again
    first, second = (Policy(path, policy_digest(Path(path))) for path in sys.argv[2:])
    engine = Engine("float32", 64, tensor_parallel_size=int(sys.argv[1]), kv_cache_gib=0.1)
    requests = [Request([5 + i, 9, 30, 7], seed=i) for i in range(8)]
    found = []
    for policy in (first, second, first):
        answers = engine.generate(policy, requests, 16, 1.0, 1.0, [0])
        found.append([answer.token_ids for answer in answers])
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_tensor_parallel_engine_gives_the_answers_of_one_process_after_each_swap(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_model(tmp_path / name, seed=seed)
    (tmp_path / "parts.py").write_text(PARTS)
    answers = []
    for parts in ("1", "2"):
        words = [sys.executable, str(tmp_path / "parts.py"), parts, str(tmp_path / "a"), str(tmp_path / "b")]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    assert answers[1] == answers[0]
    assert answers[0][0] == answers[0][2] != answers[0][1]
