"""Losses against values worked out by hand."""

import math

import pytest
import torch

from spin.objectives.losses import PairLogps, RatingLogps, dpo, ipo, irpo, kto, kto_pair, sft, slic, space, spin, sppo


def pair(
    policy_chosen: float,
    policy_rejected: float,
    reference_chosen: float = 0.0,
    reference_rejected: float = 0.0,
    tokens: tuple[int, int] = (2, 4),
    preference: float = 1.0,
) -> PairLogps:
    values = (
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        *tokens,
        preference,
        preference,
        1 - preference,
    )
    return PairLogps(*(torch.tensor([value], dtype=torch.float64) for value in values))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_margin_is_the_difference_of_the_two_log_ratios() -> None:
    assert pair(-1.0, -5.0, -2.0, -3.0).margin.item() == 3.0  # (−1 + 2) − (−5 + 3)


@pytest.mark.parametrize(
    ("link", "expected"),
    [("logistic", math.log(1 + math.exp(-0.3))), ("hinge", 0.7), ("exponential", math.exp(-0.3))],
)
def test_spin_is_the_link_of_beta_times_the_margin(link: str, expected: float) -> None:
    assert spin(pair(-1.0, -5.0, -2.0, -3.0), beta=0.1, link=link).item() == pytest.approx(expected, abs=1e-12)


PAIR = (-1.0, -5.0, -2.0, -3.0)  # log-ratios +1 and −2, margin 3


def test_dpo_smooths_its_labels() -> None:
    assert dpo(pair(*PAIR), beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    expected = 0.9 * math.log(1 + math.exp(-1.5)) + 0.1 * math.log(1 + math.exp(1.5))
    assert dpo(pair(*PAIR), beta=0.5, label_smoothing=0.1).item() == pytest.approx(expected)


def test_spin_with_the_logistic_link_is_dpo() -> None:
    assert torch.equal(spin(pair(*PAIR), beta=0.7, link="logistic"), dpo(pair(*PAIR), beta=0.7))


def test_ipo_pulls_the_margin_to_its_target() -> None:
    assert ipo(pair(*PAIR), beta=0.25).item() == pytest.approx((3 - 2) ** 2)
    assert ipo(pair(*PAIR), beta=0.25, length_normalize=True).item() == pytest.approx((1 / 2 + 2 / 4 - 2) ** 2)


def test_slic_is_a_hinge_with_or_without_a_reference() -> None:
    assert slic(pair(-1.0, -1.5), link="calibrated", beta=9.0, delta=2.0, regularization=0.1).item() == pytest.approx(
        2 + 1 - 1.5 + 0.1
    )
    assert slic(pair(-1.0, -5.0), link="calibrated", beta=9.0, delta=2.0, regularization=0.1).item() == pytest.approx(
        0.1
    )  # apart by more than δ
    assert slic(pair(*PAIR), link="margin", beta=0.1, delta=2.0, regularization=0.1).item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match="expected calibrated or margin"):
        slic(pair(*PAIR), link="hinge", beta=1.0, delta=1.0, regularization=0.0)


def test_kto_weighs_desirable_and_undesirable_against_z() -> None:
    ratings = RatingLogps(
        number(0).new_tensor([-1.0, -5.0]), number(0).new_tensor([-2.0, -3.0]), number(0).new_tensor([1.0, 0.0])
    )
    losses = kto(ratings, number(0.5), beta=2.0, desirable_weight=1.0, undesirable_weight=3.0)
    assert losses.tolist() == pytest.approx([1 - sigmoid(2 * (1 - 0.5)), 3 * (1 - sigmoid(2 * (0.5 + 2)))])


def test_kto_pair_takes_the_other_halfs_mean() -> None:
    loss = kto_pair(pair(*PAIR), number(0).new_tensor([0.25, 0.5]), beta=2.0).item()
    assert loss == pytest.approx((1 - sigmoid(2 * (1 - 0.5)) + 1 - sigmoid(2 * (0.25 + 2))) / 2)


def test_no_gradient_flows_through_z() -> None:
    z = number(0.5).requires_grad_()
    ratings = RatingLogps(
        number(0).new_tensor([-1.0]).requires_grad_(), number(0).new_tensor([-2.0]), number(0).new_tensor([1.0])
    )
    kto(ratings, z, beta=1.0, desirable_weight=1.0, undesirable_weight=1.0).sum().backward()
    assert ratings.policy.grad is not None
    assert z.grad is None


def test_the_gradient_of_a_huge_margin_is_finite() -> None:
    chosen = torch.tensor([-1e4], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    spin(
        PairLogps(chosen, zero, zero, zero, zero, zero, zero + 1, zero + 1, zero), beta=5.0, link="logistic"
    ).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-5.0)


def test_an_unknown_link_is_refused() -> None:
    with pytest.raises(ValueError, match="expected logistic, hinge or exponential"):
        spin(pair(0, 0), beta=1.0, link="square")


def test_sft_is_the_negative_log_likelihood() -> None:
    assert sft(torch.tensor([-2.5])).item() == 2.5


def margin_of_two(preference: float) -> PairLogps:
    return pair(1.0, -1.0, preference=preference)


SOFT = {
    "spin logistic": (lambda logps: spin(logps, beta=0.1, link="logistic"), 0.638139),
    "dpo": (lambda logps: dpo(logps, beta=0.1), 0.638139),
    "spin hinge": (lambda logps: spin(logps, beta=0.1, link="hinge"), 0.88),
    "slic margin": (lambda logps: slic(logps, link="margin", beta=0.1, delta=1.0, regularization=0.1), 0.88),
    "spin exponential": (lambda logps: spin(logps, beta=0.1, link="exponential"), 0.899265),
    "ipo": (lambda logps: ipo(logps, beta=0.1), 1.0),
}
"""Losses with β 0.1 of a pair whose margin is 2 and whose preference is 0.8."""


@pytest.mark.parametrize("name", SOFT)
def test_a_soft_label_gives_the_expected_loss_over_both_orders(name: str) -> None:
    loss, expected = SOFT[name]
    assert loss(margin_of_two(0.8)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_swapped_completions_with_the_opposite_preference_have_the_same_loss(name: str) -> None:
    loss, _ = SOFT[name]
    swapped = pair(-1.0, 1.0, preference=0.2)
    assert loss(margin_of_two(0.8)).item() == pytest.approx(loss(swapped).item(), abs=1e-12)


@pytest.mark.parametrize("preference", [0.5, 0.8, 1.0])
def test_the_logistic_loss_starts_at_ln_2_for_every_preference(preference: float) -> None:
    start = pair(-1.0, -1.0, -1.0, -1.0, preference=preference)
    assert spin(start, beta=0.1, link="logistic").item() == pytest.approx(math.log(2), abs=1e-12)
    assert ipo(start, beta=0.1).item() == pytest.approx(((2 * preference - 1) / 0.2) ** 2)


def test_label_smoothing_and_a_soft_label_add_up() -> None:
    # p' = 0.9 · 0.8 + 0.1 · 0.2 = 0.74
    smoothed = dpo(margin_of_two(0.8), beta=0.1, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(dpo(margin_of_two(0.74), beta=0.1).item(), abs=1e-12)


def test_a_hard_label_ignores_a_flipped_loss_that_overflows() -> None:
    chosen = torch.tensor([1e4], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss = spin(PairLogps(chosen, zero, zero, zero, zero, zero, zero + 1, zero + 1, zero), beta=1.0, link="exponential")
    loss.sum().backward()
    assert loss.item() == 0
    assert chosen.grad is not None
    assert chosen.grad.item() == 0


def test_kto_weighs_a_soft_rating_by_its_desirability() -> None:
    def loss(desirability: float) -> float:
        ratings = RatingLogps(
            number(0).new_tensor([-1.0]), number(0).new_tensor([-2.0]), number(0).new_tensor([desirability])
        )
        return kto(ratings, number(0.5), beta=2.0, desirable_weight=1.0, undesirable_weight=3.0).item()

    assert loss(0.8) == pytest.approx(0.8 * loss(1.0) + 0.2 * loss(0.0), abs=1e-12)
    assert loss(1.0) == pytest.approx(1 - sigmoid(2 * (1 - 0.5)))


# The log-ratios of the next tests are a = 1 and b = −0.5.
RATIOS = (1.0, -0.5)


def test_sppo_fits_each_log_ratio_to_its_win_rate() -> None:
    # η = 10: ½[(1 − 10 · 0.3)² + (−0.5 + 10 · 0.3)²] = ½(4 + 6.25)
    assert sppo(pair(*RATIOS, preference=0.8), beta=0.1).item() == pytest.approx(5.125)
    # Hard labels: ½[(1 − 5)² + (−0.5 + 5)²] = ½(16 + 20.25), half of TRL's 36.25.
    assert sppo(pair(*RATIOS), beta=0.1).item() == pytest.approx(18.125)
    # Before the first step: ½(5² + 5²).
    assert sppo(pair(0.0, 0.0), beta=0.1).item() == pytest.approx(25)


@pytest.mark.parametrize(("mu", "start", "expected"), [(1.0, 2 * math.log(2), 0.787339), (2.0, 1.909543, 1.081191)])
def test_space_judges_each_completion_alone(mu: float, start: float, expected: float) -> None:
    assert space(pair(0.0, 0.0), mu=mu).item() == pytest.approx(start, abs=1e-6)
    assert space(pair(*RATIOS), mu=mu).item() == pytest.approx(expected, abs=1e-6)


def test_space_gives_equal_completions_a_loss_of_their_own() -> None:
    # With y = y' a loss of the margin alone has no gradient; this one still pulls to the reference.
    ratio = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    space(PairLogps(ratio, ratio, zero, zero, zero, zero, zero + 1, zero + 1, zero), mu=1.0).sum().backward()
    assert ratio.grad is not None
    # −σ(−0.5) + σ(0.5)
    assert ratio.grad.item() == pytest.approx(sigmoid(0.5) - sigmoid(-0.5))


def test_a_soft_label_mixes_space_and_irpo_with_the_swapped_pair() -> None:
    soft, labelled, swapped = pair(*RATIOS, preference=0.8), pair(*RATIOS), pair(-0.5, 1.0, tokens=(4, 2))
    mixed = 0.8 * space(labelled, mu=2.0) + 0.2 * space(swapped, mu=2.0)
    assert space(soft, mu=2.0).item() == pytest.approx(mixed.item(), abs=1e-12)
    mixed = 0.8 * irpo(labelled, beta=0.1, nll_weight=0.5) + 0.2 * irpo(swapped, beta=0.1, nll_weight=0.5)
    assert irpo(soft, beta=0.1, nll_weight=0.5).item() == pytest.approx(mixed.item(), abs=1e-12)


def test_irpo_adds_the_likelihood_of_each_chosen_completion_by_its_length() -> None:
    # Two tokens with log π = −3: at the start ln 2 + α · 3/2.
    start = pair(-3.0, -1.0, -3.0, -1.0)
    assert irpo(start, beta=0.1, nll_weight=0.5).item() == pytest.approx(math.log(2) + 0.75)
    assert irpo(pair(*PAIR), beta=0.5, nll_weight=0.0).item() == dpo(pair(*PAIR), beta=0.5).item()
