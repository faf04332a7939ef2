"""The real vLLM engine keeps its base and answers with one adapter after the other."""

from pathlib import Path

import pytest

from spin.config.training import Dtype, TrainingConfig
from spin.generation.adapter_requests import adapter_options
from spin.generation.engine import Engine
from spin.generation.requests import Request
from spin.models.adapter_folder import AdapterFolder, write_merged
from spin.models.packing import Group
from spin.models.policy import Policy, policy_digest
from spin.training.trainer import Trainer
from tests.adapters import LORA, write_adapter_of
from tests.tiny import write_model


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (33, 64), (400, 512)])
def test_the_buffers_of_the_engine_have_the_next_rank_that_vllm_knows(rank: int, allowed: int, tmp_path: Path) -> None:
    assert adapter_options(rank, Policy("", ""))["max_lora_rank"] == allowed
    policy = write_adapter_of(write_model(tmp_path / "base", seed=0), tmp_path / "adapter", seed=1)
    # The adapter that a run starts from has rank 4.
    assert adapter_options(rank, policy)["max_lora_rank"] == max(allowed, 8)


@pytest.mark.slow
def test_an_engine_that_keeps_its_base_agrees_with_the_trainer_and_with_merged_weights(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=0)
    first = write_adapter_of(base, tmp_path / "first", seed=1)
    second = write_adapter_of(base, tmp_path / "second", seed=2)
    write_merged(AdapterFolder(tmp_path / "second", tmp_path / "base"), tmp_path / "merged", False, "float32")
    merged = Policy(str(tmp_path / "merged"), policy_digest(tmp_path / "merged"))

    requests = [Request([5 + i, 9, 30, 7] * 5, seed=i) for i in range(4)]
    engine = Engine("float32", 64, kv_cache_gib=0.1, adapter_rank=4)
    trainer, whole = Trainer(Dtype.float32, adapter=LORA), Trainer(Dtype.float32)
    training = TrainingConfig(max_length=64)
    seen = []
    # Back and forth, with prompts whose keys and values are in the prefix cache of another one.
    for policy in (base, first, second, first, base, second):
        answers = engine.generate(policy, requests, 16, 1.0, 1.0, [0])
        groups = [Group(request.prompt_ids, [a.token_ids]) for request, a in zip(requests, answers, strict=True)]
        found = [trainer.score(policy, groups, training)]
        if policy is second:
            found.append(whole.score(merged, groups, training))
        for scores in found:
            for answer, [logp] in zip(answers, scores, strict=True):
                assert answer.logp == pytest.approx(logp, abs=1e-4 * len(answer.token_ids))
        seen.append([answer.token_ids for answer in answers])
    assert seen[0] == seen[4] != seen[1] == seen[3] != seen[2] == seen[5]
