"""Log-probabilities of logits and of hidden states, against values from float64 and by hand."""

import pytest
import torch
from torch import Tensor

from spin.models.kernels import head as logps
from spin.models.kernels.head import head_logps
from spin.models.token_logps import TokenLogps, padded_logps

OWNERS = torch.tensor([0, 0, 0, 1, 2, 2, 2])


def test_only_completion_tokens_are_scored_and_each_from_the_position_before_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5)
    ids = torch.tensor([[1, 2, 3, 0], [4, 1, 0, 2]])
    mask = torch.tensor([[False, True, True, False], [False, False, False, True]])
    table = torch.log_softmax(logits.double(), dim=-1)
    expected = torch.stack([table[0, 0, 2] + table[0, 1, 3], table[1, 2, 2]])
    torch.testing.assert_close(padded_logps(logits, ids, mask).sums(), expected, atol=1e-6, rtol=0)


def test_what_stands_on_padding_changes_nothing() -> None:
    logits, mask = torch.randn(1, 3, 5), torch.tensor([[False, True, False]])
    first = padded_logps(logits, torch.tensor([[1, 2, 3]]), mask).values
    assert torch.equal(first, padded_logps(logits, torch.tensor([[1, 2, 0]]), mask).values)


def test_a_completion_token_with_nothing_before_it_is_refused() -> None:
    with pytest.raises(ValueError, match="position 0"):
        padded_logps(torch.randn(1, 2, 3), torch.tensor([[0, 1]]), torch.tensor([[True, False]]))


def test_the_head_of_two_logits_by_hand() -> None:
    hidden, weight = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])  # logits (0, 1) and (0, 2)
    found = head_logps(hidden, weight, torch.tensor([1, 0])).sum()
    assert found.item() == pytest.approx(-0.3132616875 - 2.1269280110, abs=1e-6)  # −log(1 + e^−1) − log(1 + e^2)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden, weight, bias = (torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((7, 5), (11, 5), (11,)))
    return hidden, weight, bias, torch.randint(11, (7,))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("byte_budget", [1 << 20, 7 * 4 * 8, 8])  # logits kept; tiles of 4 columns; of one
def test_the_head_is_log_softmax_and_its_gradient_is_right(
    softcap: float | None, byte_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "ROWS", 3)  # more than one tile of rows
    hidden, weight, bias, labels = inputs()

    def fused(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values = head_logps(hidden, weight, labels, bias, softcap, byte_budget=byte_budget)
        return TokenLogps(values, OWNERS, 3).sums()

    logits = hidden @ weight.t() + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    tokens = torch.log_softmax(logits, -1).gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(
        fused(hidden, weight, bias), torch.zeros(3, dtype=torch.float64).index_add(0, OWNERS, tokens)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            fused(hidden, weight, bias), torch.zeros(3, dtype=torch.float64).index_add(0, OWNERS, tokens)
        )
    assert torch.autograd.gradcheck(fused, (hidden, weight, bias))


def test_logits_of_any_size_are_finite() -> None:
    hidden, weight = (
        torch.tensor([[1e4], [-1e4]], requires_grad=True),
        torch.tensor([[1.0], [-1.0]], requires_grad=True),
    )
    for byte_budget in (1 << 20, 4):
        found = head_logps(hidden, weight, torch.tensor([0, 0]), byte_budget=byte_budget)
        assert found.tolist() == [0.0, -2e4]
        found.sum().backward()
        assert hidden.grad is not None
        assert torch.isfinite(hidden.grad).all()


def test_bfloat16_products_keep_float32_sums() -> None:
    hidden, weight, _, labels = inputs(torch.float32)
    exact = TokenLogps(head_logps(hidden, weight, labels), OWNERS, 3).sums()
    for byte_budget in (1 << 20, 7 * 4 * 4):
        values = head_logps(hidden, weight, labels, compute_dtype=torch.bfloat16, byte_budget=byte_budget)
        found = TokenLogps(values, OWNERS, 3).sums()
        assert ((found - exact) / exact).abs().max() < 5e-3
        (gradient,) = torch.autograd.grad(found.sum(), weight)
        (expected,) = torch.autograd.grad(exact.sum(), weight, retain_graph=True)
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_no_tensor_of_tokens_by_vocabulary_is_kept_or_made_beyond_the_budget() -> None:
    hidden, weight = torch.randn(200, 4, requires_grad=True), torch.randn(5000, 4, requires_grad=True)
    labels = torch.randint(5000, (200,))

    def largest(byte_budget: int) -> int:
        sizes: list[int] = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                out = function(*args, **(kwargs or {}))
                sizes.extend(x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor))
                return out

        with Watch():
            head_logps(hidden, weight, labels, byte_budget=byte_budget).sum().backward()
        return max(sizes)

    assert largest(200 * 5000 * 4) == 200 * 5000  # the watch sees them where they fit
    assert largest(200 * 100 * 4) == 200 * 100  # = weight.numel(), too


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        head_logps(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([1, 2]))


def test_the_head_takes_a_copy_of_its_weight_in_place_of_casting_it() -> None:
    hidden, weight, _, labels = inputs(torch.float32)
    copy = weight.detach().bfloat16()
    for byte_budget in (1 << 20, 7 * 4 * 4):
        one, two = (
            head_logps(hidden, weight, labels, compute_dtype=torch.bfloat16, copy=given, byte_budget=byte_budget)
            for given in (None, copy)
        )
        assert torch.equal(one, two)
        for a, b in zip(
            torch.autograd.grad(one.sum(), (hidden, weight)),
            torch.autograd.grad(two.sum(), (hidden, weight)),
            strict=True,
        ):
            assert torch.equal(a, b)
    doubled = head_logps(hidden, weight, labels, compute_dtype=torch.bfloat16, copy=2 * copy)
    assert not torch.allclose(doubled, two)  # it is the copy that is read
