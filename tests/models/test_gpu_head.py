"""The head of GPUs, on a CPU: the same numbers as the head of CPUs."""

import pytest
import torch

from spin.models.kernels.gpu_head import gpu_head_logps
from spin.models.kernels.head import head_logps


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_of_rows_give_what_the_head_of_cpus_gives(softcap: float | None, with_bias: bool, rows: int) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(7, 5), torch.randn(11, 5)
    bias = torch.randn(11) if with_bias else None
    labels, factors = torch.randint(11, (7,)), torch.randn(7)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]

    expected = head_logps(hidden, weight, labels, bias, softcap)
    expected_gradients = torch.autograd.grad((expected * factors).sum(), inputs)
    found = gpu_head_logps(hidden, weight, labels, bias, softcap, torch.float32, block_bytes=rows * 11 * 4)
    gradients = torch.autograd.grad((found * factors).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_products_in_bfloat16_have_gradients_in_the_dtype_of_their_inputs() -> None:
    hidden = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(6, 8, requires_grad=True)
    values = gpu_head_logps(hidden, weight, torch.tensor([0, 1, 2, 5]), None, None, torch.bfloat16)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    gpu_head_logps(hidden, weight, torch.tensor([0, 1, 2, 5]), None, None, torch.float32).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
