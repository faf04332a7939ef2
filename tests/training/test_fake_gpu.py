"""The path of training and scoring that a GPU takes, on a fake device: `fake_gpu.py`.

Values, kernels and compilation are not tried, and of FlexAttention only its arguments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHAPES = ["Llama-7B", "Qwen-0.5B"]
WAITS_OF_A_STEP = {
    "read: training/loss_check.py check_losses": 1,
    "read: training/sharding.py clip_gradient": 1,
    "read: objectives/objective.py Objective.name_metrics": 1,
}
"""Reads after the last of the passes: losses, the norm of the gradient, and metrics."""
WAITS: dict[str, dict[str, int]] = {
    # z, the baseline of KTO.
    "kto": WAITS_OF_A_STEP | {"read: objectives/kto.py KtoLoss.name_metrics": 1},
    # In each of the two passes: where the tokens of each answer begin.
    "grpo": {
        "aten::bincount: models/token_logps.py TokenLogps.starts": 2,
        "read: models/token_logps.py TokenLogps.starts": 2,
        "read: training/loss_check.py check_losses": 1,
        "read: training/sharding.py clip_gradient": 1,
        "read: objectives/policy_gradient.py PolicyGradientLoss.name_metrics": 1,
    },
    "bradley_terry": {
        "read: training/loss_check.py check_losses": 1,
        "read: training/sharding.py clip_gradient": 1,
        "read: objectives/bradley_terry.py BradleyTerryLoss.name_metrics": 1,
    },
}
"""Where others differ."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.fake_gpu"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*SHAPES, "checkpointing", "sft", "kto", "tspin", "grpo", "bradley_terry", "float32"])
def test_a_step_waits_for_the_device_at_these_places_only(found: dict[str, Any], name: str) -> None:
    assert found[name]["step"] == WAITS.get(name, WAITS_OF_A_STEP)
    assert found[name]["score"] == {}
    assert found[name]["queued"] > 0


@pytest.mark.parametrize("name", SHAPES)
def test_matrix_products_and_attention_are_in_bfloat16(found: dict[str, Any], name: str) -> None:
    products = found[name]["products"]
    # Two passes of training and one of scoring through two layers.
    assert products.keys() == {"aten::mm torch.bfloat16", "torch_attn::_varlen_attn torch.bfloat16"}
    assert products["torch_attn::_varlen_attn torch.bfloat16"] == 6


def test_checkpointed_layers_run_again_in_the_backward_pass(found: dict[str, Any]) -> None:
    assert found["checkpointing"]["products"]["torch_attn::_varlen_attn torch.bfloat16"] == 10
