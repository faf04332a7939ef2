"""The GPU's attention, as far as a CPU can run it.

The mask, and the uncompiled kernel against the blocks of spin.models.kernels.attention.
"""

import random

import pytest
import torch

from spin.models.kernels import flex
from spin.models.kernels.attention import attend_forward
from spin.models.kernels.segments import segments
from spin.models.packing import Group, pack


def test_who_sees_whom_by_hand() -> None:
    packed = pack(
        [Group([5, 6], [[1, 2, 3], [4, 4]]), Group([8], [[9]])]
    )  # p p | r r | g ‖ p, then one token of padding
    group, part = flex.number_parts(packed.spans, 7)
    at = torch.arange(7)
    rows = flex.is_visible(at.unsqueeze(1), at.unsqueeze(0), group, part).int().tolist()
    assert rows == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_flex_attention_agrees_with_the_blocks(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    torch.manual_seed(0)
    packed = pack([Group([1] * 70, [[2] * 150, [3] * 20]), Group([4] * 3, [[5]])])
    tokens = len(packed.input_ids)
    q, k, v = torch.randn(1, 4, tokens, 16), torch.randn(1, 2, tokens, 16), torch.randn(1, 2, tokens, 16)
    found = flex.FlexPlan(packed.spans, tokens, torch.device("cpu"))(q, k, v, softcap)
    expected = attend_forward(*(x[0].transpose(0, 1) for x in (q, k, v)), segments(packed.spans), softcap)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_blocks_that_need_a_mask_and_blocks_that_do_not_by_hand() -> None:
    # Blocks of 128: the prompt fills 0 and 1, one completion 2 and half of 3, the other 3 and 4.
    spans = pack([Group([7] * 256, [[1] * 193, [2] * 193])]).spans
    masked, whole = flex.classify_blocks(*flex.number_parts(spans, 640))
    assert masked.int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert whole.int().tolist() == [
        [0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
    ]
    counts, columns = flex.list_blocks(masked)
    assert counts.tolist() == [[[1, 1, 1, 2, 2]]]
    assert columns[0, 0, 3].tolist() == [2, 3, 0, 1, 4]


@pytest.mark.parametrize("seed", range(5))
def test_the_blocks_hold_all_that_is_visible_and_whole_blocks_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    groups = [
        Group([1] * rng.randint(1, 300), [[2] * rng.randint(1, 400) for _ in range(rng.randint(1, 3))])
        for _ in range(8)
    ]
    packed = pack(groups)
    length = len(packed.input_ids) + -len(packed.input_ids) % flex.BLOCK
    group, part = flex.number_parts(packed.spans, length)
    masked, whole = flex.classify_blocks(group, part)
    at = torch.arange(length)
    visible = flex.is_visible(at[:, None], at[None, :], group, part)
    blocks = visible.view(length // 128, 128, length // 128, 128).permute(0, 2, 1, 3).flatten(2)
    assert not (masked & whole).any()
    assert ((masked | whole) | ~blocks.any(-1)).all()
    assert (blocks.all(-1) | ~whole).all()
    # Few blocks are computed for nothing.
    assert (masked | whole).sum() <= 1.2 * blocks.any(-1).sum()
