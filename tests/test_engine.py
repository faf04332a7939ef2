"""The real vLLM engine on a tiny real model: what it answers after an in-place swap."""

import gc
from pathlib import Path

import pytest
import torch

from spin.engine import Engine, Request, request_seed
from spin.model import CheckpointError, Policy, load_policy
from tests.tiny import write_model


def test_a_seed_depends_on_what_the_sample_is_and_on_nothing_else() -> None:
    assert request_seed(0, "sample", 1, 2, 3) == request_seed(0, "sample", 1, 2, 3)
    others = {request_seed(0, "sample", 1, 2, 3), request_seed(1, "sample", 1, 2, 3), request_seed(0, "sample", 1, 3, 2), request_seed(0, "held", 1, 2, 3)}
    assert len(others) == 4


def test_an_altered_checkpoint_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    policy = write_model(tmp_path / "a", seed=1)
    with (tmp_path / "a" / "config.json").open("a") as handle:
        handle.write("\n")
    with pytest.raises(CheckpointError, match="was altered"):
        Engine("float32", 64).load(policy)


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
