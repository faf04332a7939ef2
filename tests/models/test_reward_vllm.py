"""vLLM gives an exported reward model the rewards of the trainer, after a swap of weights too."""

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
from spin.models.policy import policy_digest
from spin.models.reward_export import RewardFacts, export_reward_model
from spin.models.scalar_head import GroupRewards, load_reward_model
from spin.orchestration.reward_backends import find_difference
from spin.training.reference import allowed_engine_gap

GROUP = Group([1, 70, 71, 2], [[80, 81, 2], [90, 2], [91, 92, 93]])
SCRIPT = """
import json, sys
from spin.generation.reward_engine import RewardEngine
from spin.models.packing import Group
from spin.models.policy import Policy
engine = RewardEngine("float32", 64, kv_cache_gib=0.0625)
group = Group(*json.loads(sys.argv[1]))
for folder, digest in json.loads(sys.argv[2]):
    print("REWARDS", json.dumps(engine.score_groups(Policy(folder, digest), [group, group])))
"""


@pytest.mark.slow
def test_vllm_gives_the_rewards_of_the_trainer_of_one_model_and_then_of_another(tmp_path: Path) -> None:
    builtin.write_tiny_model(tmp_path / "start", seed=0)
    model = load_reward_model(tmp_path / "start")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    folders = []
    expected = []
    # The second model has a doubled head, and so doubled rewards.
    for name in ("reward", "doubled"):
        export_reward_model(model, tokenizer, tmp_path / name, "float32", (2,), RewardFacts())
        folders.append([str(tmp_path / name), policy_digest(tmp_path / name)])
        expected.append(GroupRewards(model, Dtype.float32, "shared")([GROUP]).sums().tolist())
        with torch.no_grad():
            model.score.weight.mul_(2)

    group = json.dumps([GROUP.prompt_ids, GROUP.completions])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, group, json.dumps(folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("REWARDS ")]
    tolerance = allowed_engine_gap(Dtype.float32, uses_gpu=False)
    for line, rewards in zip(lines, expected, strict=True):
        found = json.loads(line.removeprefix("REWARDS "))
        assert len(found) == 2
        for found_rewards in found:
            # Sums in float32, in another order.
            assert found_rewards == pytest.approx(rewards, rel=5e-6, abs=1e-5)
            difference, allowed = find_difference([rewards], [found_rewards], tolerance)
            assert difference < allowed
    assert max(expected[0]) - min(expected[0]) > 0.1
    assert expected[1] == pytest.approx([2 * reward for reward in expected[0]], rel=1e-5)
