"""The flash attention of GPUs, as far as a CPU can run it.

The layout of its sequences by hand, and with a plain attention in place of the kernel against the
blocks of spin.models.kernels.attention.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from spin.models.kernels import flash
from spin.models.kernels.attention import attend_forward
from spin.models.kernels.segments import segments
from spin.models.packing import Group, pack


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, plan: flash.FlashPlan) -> Tensor:
    """What the kernel computes: the last query of a sequence sees its last key."""
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    query_ends, key_ends = plan.query_ends.tolist(), plan.key_ends.tolist()
    for number in range(len(query_ends) - 1):
        q = query[query_ends[number] : query_ends[number + 1]].transpose(0, 1)
        k, v = (
            x[key_ends[number] : key_ends[number + 1]].transpose(0, 1).repeat_interleave(repeats, 0)
            for x in (key, value)
        )
        scores = q @ k.transpose(1, 2)
        rows, columns = scores.shape[1:]
        hidden = torch.ones(rows, columns, dtype=torch.bool).triu(columns - rows + 1)
        outputs.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def test_sequences_of_two_groups_by_hand() -> None:
    # p p | r r | g ‖ p: the last token of a completion is not fed.
    packed = pack([Group([5, 6], [[1, 2, 3], [4, 4]]), Group([8], [[9]])])
    plan = flash.FlashPlan(packed.spans, torch.device("cpu"))
    assert plan.query_ends.tolist() == [0, 4, 5, 6]
    assert plan.key_ends.tolist() == [0, 4, 7, 8]
    assert plan.key_rows.tolist() == [0, 1, 2, 3, 0, 1, 4, 5]
    assert (plan.longest_query, plan.longest_key) == (512, 512)


def test_flash_attention_and_its_gradients_agree_with_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_varlen_attention", lambda: attend_plainly)
    torch.manual_seed(0)
    packed = pack([Group([1] * 70, [[2] * 150, [3] * 20, [1]]), Group([4] * 3, [[5]]), Group([4] * 3, [[5] * 9] * 2)])
    tokens = len(packed.input_ids)
    shapes = ((1, 4, tokens, 16), (1, 2, tokens, 16), (1, 2, tokens, 16))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    q, k, v = inputs
    weights = torch.randn(1, tokens, 4, 16)

    found = flash.FlashPlan(packed.spans, torch.device("cpu"))(q, k, v)
    expected = attend_forward(*(x[0].transpose(0, 1) for x in inputs), segments(packed.spans), None)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)

    # Gradients: of a dense attention with the mask of FlexAttention, which is tested by hand.
    from spin.models.kernels.flex import is_visible, number_parts

    group, part = number_parts(packed.spans, tokens)
    at = torch.arange(tokens)
    visible = is_visible(at[:, None], at[None, :], group, part)
    scores = (q[0] @ k[0].repeat_interleave(2, 0).transpose(1, 2)).masked_fill(~visible, -torch.inf)
    dense = (scores.softmax(-1) @ v[0].repeat_interleave(2, 0)).transpose(0, 1)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((dense * weights[0]).sum(), inputs)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_gradients_of_copied_keys_are_added_in_float32() -> None:
    # 1 + 256 copies of 2^-9 are 1.5; in bfloat16, adding them one by one would stay at 1.
    values = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    copies = flash._GatherRows.apply(values, torch.zeros(257, dtype=torch.long))
    copies.backward(torch.tensor([[1.0]] + [[2.0**-9]] * 256, dtype=torch.bfloat16))
    assert values.grad is not None
    assert values.grad.item() == 1.5


@pytest.mark.parametrize(
    ("changes", "supported"), [({}, True), ({"head_dim": 512}, False), ({"attn_logit_softcapping": 50.0}, False)]
)
def test_which_models_the_kernel_serves(changes: dict[str, Any], supported: bool) -> None:
    from transformers import LlamaConfig

    assert flash.supports_flash(LlamaConfig(hidden_size=64, num_attention_heads=4, **changes)) is supported


def test_capped_scores_are_refused() -> None:
    plan = flash.FlashPlan(pack([Group([1], [[2]])]).spans, torch.device("cpu"))
    with pytest.raises(ValueError, match="does not cap scores"):
        plan(*(torch.zeros(1, 1, 1, 8) for _ in range(3)), softcap=2.0)
