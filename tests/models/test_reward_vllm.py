"""vLLM gives an exported reward model the rewards of the trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from spin.config.training import Dtype
from spin.data import builtin
from spin.models.packing import Group
from spin.models.reward_export import RewardFacts, export_reward_model
from spin.models.scalar_head import GroupRewards, load_reward_model

GROUP = Group([1, 70, 71, 2], [[80, 81, 2], [90, 2], [91, 92, 93]])
SCRIPT = """
import json, sys
from vllm import LLM, PoolingParams
settings = dict(dtype="float32", max_model_len=64, enforce_eager=True, enable_chunked_prefill=False)
llm = LLM(sys.argv[1], runner="pooling", kv_cache_memory_bytes=64 << 20, **settings)
prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
found = llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
print("REWARDS", json.dumps([output.outputs.probs for output in found]))
"""


@pytest.mark.slow
def test_vllm_gives_the_rewards_of_the_trainer_when_it_is_asked_for_no_sigmoid(tmp_path: Path) -> None:
    builtin.write_tiny_model(tmp_path / "start", seed=0)
    model = load_reward_model(tmp_path / "start")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    export_reward_model(model, tokenizer, tmp_path / "reward", "float32", (2,), RewardFacts())
    rewards = GroupRewards(model, Dtype.float32, "shared")([GROUP]).sums().tolist()

    sequences = json.dumps([GROUP.prompt_ids + ids for ids in GROUP.completions])
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "reward"), sequences]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("REWARDS ")]
    found = [values[0] for values in json.loads(line.removeprefix("REWARDS "))]
    # Sums in float32, in another order.
    assert found == pytest.approx(rewards, rel=5e-6, abs=1e-5)
    assert max(rewards) - min(rewards) > 0.1
