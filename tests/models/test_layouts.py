"""Which gradients are compared before a layout is taken."""

from collections.abc import Sequence

import pytest
from torch import Tensor

from spin.config.training import Dtype
from spin.models import layouts
from spin.models.forward import GroupLogps
from spin.models.layouts import choose_layout, list_compared
from spin.models.packing import Group
from tests.models.test_forward import GROUPS, make

NORMS = ["input_layernorm", "post_attention_layernorm"]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model counts as a large one; its norms have 64 values each."""
    monkeypatch.setattr(layouts, "LARGE_MODEL", 1000)
    monkeypatch.setattr(layouts, "SMALL_PARAMETER", 64)


def test_a_small_model_compares_all_gradients() -> None:
    model = make("llama, tied")
    assert list_compared(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.usefixtures("small_limits")
def test_a_large_model_compares_those_of_its_norms_in_every_layer() -> None:
    expected = {f"model.layers.{layer}.{norm}.weight" for layer in range(3) for norm in NORMS}
    assert list_compared(make("llama, tied")).keys() == {*expected, "model.norm.weight"}


@pytest.mark.usefixtures("small_limits")
def test_a_layout_with_another_gradient_is_not_taken_by_a_large_model() -> None:
    model = make("llama, tied")
    net = GroupLogps(model, Dtype.float32)

    def compute(groups: Sequence[Group], layout: str, dtype: Dtype) -> Tensor:
        logps = net._sum_logps(groups, layout, dtype)
        if layout == "shared":
            # The same values, twice the gradient.
            logps = 2 * logps - logps.detach()
        return logps

    layout, problem = choose_layout(model, compute, GROUPS[1:3], Dtype.float32)
    assert layout == "packed"
    assert problem is not None
    assert problem.startswith("shared is not exact for LlamaForCausalLM (gradients differ by 1.0e+00, allowed")
