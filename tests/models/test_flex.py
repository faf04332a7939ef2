"""The GPU's attention, as far as a CPU can run it.

The mask, and the uncompiled kernel against the blocks of spin.models.kernels.attention.
"""

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
