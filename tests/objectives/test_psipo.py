"""ΨPO: targets from preferences, the loss of pairs, and the policy that minimises it.

The numbers are worked out by hand for three answers whose preferences are P.
"""

import itertools
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from spin.config.objective import PsipoObjective
from spin.errors import ConfigError, TrainingError
from spin.objectives.completion_logps import CompletionLogps
from spin.objectives.losses import PairLogps, dpo, ipo, psipo
from spin.objectives.pair_objectives import split_pairs
from spin.objectives.psi import PsiFunction, compute_targets, is_antisymmetric, make_psi
from spin.objectives.psipo import PsipoLoss

P = torch.tensor([[0.5, 0.8, 0.9], [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]], dtype=torch.float64)


def square(preferences: Tensor) -> Tensor:
    return preferences**2


SQUARE = f"{__name__}.square"


def completions(
    margin: float, preference: float, target: float = math.nan, tokens: tuple[int, int] = (2, 4)
) -> CompletionLogps:
    """One pair whose log-ratios are `margin` and 0."""
    values = torch.tensor([margin, 0.0], dtype=torch.float64, requires_grad=True)
    both = torch.ones(2, dtype=torch.float64)
    return CompletionLogps(
        policy=values,
        reference=0 * both,
        tokens=torch.tensor(tokens, dtype=torch.float64),
        desirable=torch.tensor([True, False]),
        preference=preference * both,
        win_rate=torch.tensor([preference, 1 - preference], dtype=torch.float64),
        target=target * both,
        num_in_row=2 * both.long(),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        paired=torch.tensor([0, 1]),
    )


def loss_of(logps: CompletionLogps, **settings: object) -> float:
    return PsipoLoss(PsipoObjective(**settings)).compute_losses(logps, None).item()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("psi", "expected"),
    [("identity", [0.266667, 0.433333, 0.166667]), ("logit", [1.374172, 2.209347, 0.835175])],
)
def test_a_target_is_the_difference_of_the_mean_psi_of_two_answers(psi: str, expected: list[float]) -> None:
    targets = compute_targets(P, make_psi(psi, 1e-3))
    assert [targets[0, 1].item(), targets[0, 2].item(), targets[1, 2].item()] == pytest.approx(expected, abs=1e-6)
    assert torch.equal(targets, -targets.T)
    assert (targets[0, 1] + targets[1, 2]).item() == pytest.approx(targets[0, 2].item())


def test_the_gains_of_the_answers_are_the_means_of_their_rows() -> None:
    # The targets against an answer that is liked as much as all of them have the gains less ½.
    identity, logit = make_psi("identity", 0.0), make_psi("logit", 1e-3)
    assert identity(P).mean(1).tolist() == pytest.approx([0.733333, 0.466667, 0.3], abs=1e-6)
    assert logit(P).mean(1).tolist() == pytest.approx([1.194506, -0.179666, -1.014841], abs=1e-6)


def test_a_psi_that_is_not_antisymmetric_takes_the_other_answers_alone() -> None:
    # Over the third answer only: p_02² − p_12², p_01² − p_21², p_10² − p_20².
    targets = compute_targets(P, square)
    assert targets[0, 1].item() == pytest.approx(0.9**2 - 0.7**2)
    assert targets[0, 2].item() == pytest.approx(0.8**2 - 0.3**2)
    assert targets[1, 2].item() == pytest.approx(0.2**2 - 0.1**2)
    assert torch.equal(targets, -targets.T)


def test_leaving_out_two_answers_of_the_identity_gives_the_numbers_worked_out_by_hand() -> None:
    # A curved Ψ near the identity: its targets are those of the identity without i and j.
    targets = compute_targets(P, lambda q: q + 1e-6 * q**2)
    assert [targets[0, 1].item(), targets[0, 2].item(), targets[1, 2].item()] == pytest.approx(
        [0.2, 0.5, 0.1], abs=1e-5
    )


def test_a_psi_that_is_not_antisymmetric_needs_a_third_answer() -> None:
    assert is_antisymmetric(make_psi("identity", 0.0))
    assert is_antisymmetric(make_psi("logit", 1e-3))
    assert not is_antisymmetric(square)
    with pytest.raises(ValueError, match="at least 3 judged answers of a prompt, found 2"):
        compute_targets(P[:2, :2], square)
    logps = completions(0.0, 0.8)
    with pytest.raises(TrainingError, match="square needs three judged answers"):
        loss_of(logps, psi=SQUARE)
    assert loss_of(completions(0.0, 0.8, target=0.3), psi=SQUARE) == pytest.approx(9)


@pytest.mark.parametrize(("preference", "scaled"), [(1.0, 5.0), (0.8, 3.0), (0.5, 0.0)])
def test_a_pair_alone_gets_its_target_from_its_preference(preference: float, scaled: float) -> None:
    # Identity with τ = 0.1: target/τ = (2p − 1)/(2τ). At Δ = 0 the loss is its square.
    assert loss_of(completions(0.0, preference)) == pytest.approx(scaled**2)
    assert loss_of(completions(scaled, preference)) == pytest.approx(0, abs=1e-12)


def test_the_logit_of_a_pair_alone_is_its_own_log_odds() -> None:
    assert math.sqrt(loss_of(completions(0.0, 0.8), psi="logit")) == pytest.approx(13.862944, abs=1e-6)


def test_a_target_of_a_judge_replaces_that_of_the_preference() -> None:
    assert loss_of(completions(1.0, 0.8, target=0.266667)) == pytest.approx((1 - 2.66667) ** 2)


@pytest.mark.parametrize("preference", [1.0, 0.8])
def test_the_identity_is_ipo_with_beta_tau(preference: float) -> None:
    ours, theirs = completions(1.5, preference), completions(1.5, preference)
    loss = PsipoLoss(PsipoObjective(tau=0.2)).compute_losses(ours, None).sum()
    expected = ipo(split_pairs(theirs), beta=0.2).sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    [gradient] = torch.autograd.grad(loss, ours.policy)
    [expected_gradient] = torch.autograd.grad(expected, theirs.policy)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


def test_the_logit_has_the_minimiser_of_dpo_with_soft_labels() -> None:
    # p = σ(r_i − r_j) with rewards 0.7 and 0; both losses are flat at Δ = 0.7/τ.
    p = 1 / (1 + math.exp(-0.7))
    for loss in (
        lambda logps: PsipoLoss(PsipoObjective(psi="logit", tau=0.5)).compute_losses(logps, None),
        lambda logps: dpo(split_pairs(logps), beta=0.5),
    ):
        logps = completions(0.7 / 0.5, p)
        [gradient] = torch.autograd.grad(loss(logps).sum(), logps.policy)
        assert gradient.abs().max() < 1e-12


REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def minimise(psi: PsiFunction, num_answers: int, tau: float) -> Tensor:
    """Return the policy over three answers with the least expected loss on samples of REFERENCE."""
    # All ways to sample the answers of a prompt, each with every pair of them.
    terms: list[tuple[float, int, int, float]] = []
    for drawn in itertools.product(range(3), repeat=num_answers):
        probability = math.prod(REFERENCE[list(drawn)].tolist())
        targets = compute_targets(P[list(drawn)][:, list(drawn)], psi)
        for i, j in itertools.permutations(range(num_answers), 2):
            terms.append((probability, drawn[i], drawn[j], targets[i, j].item()))
    weight = torch.tensor([term[0] for term in terms], dtype=torch.float64)
    first, second = (torch.tensor([term[place] for term in terms]) for place in (1, 2))
    target = torch.tensor([term[3] for term in terms], dtype=torch.float64)

    # The loss is a square of the log-ratios, so one Newton step from 0 is exact. The third
    # log-ratio is fixed, because only differences count.
    zero = torch.zeros(1, dtype=torch.float64)

    def expected_loss(free: Tensor) -> Tensor:
        ratios = torch.cat([free, zero])
        unused = torch.zeros(len(terms), dtype=torch.float64)
        pairs = PairLogps(ratios[first], ratios[second], *[unused] * 7)
        return (weight * psipo(pairs, target, tau=tau)).sum()

    start = torch.zeros(2, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(expected_loss, start)
    hessian = torch.autograd.functional.hessian(expected_loss, start)
    solution = torch.cat([-torch.linalg.solve(hessian, gradient), zero])
    return torch.softmax(REFERENCE.log() + solution, 0)


@pytest.mark.parametrize(
    ("psi", "num_answers", "expected"),
    [
        (make_psi("identity", 0.0), 2, [0.661380, 0.226672, 0.111948]),
        (make_psi("identity", 0.0), 3, [0.661380, 0.226672, 0.111948]),
        (make_psi("logit", 1e-3), 2, [0.958882, 0.036485, 0.004633]),
        (make_psi("logit", 1e-3), 3, [0.958882, 0.036485, 0.004633]),
        (square, 3, None),
    ],
    ids=["identity of 2", "identity of 3", "logit of 2", "logit of 3", "square of 3"],
)
def test_the_minimiser_is_the_optimal_policy_in_closed_form(
    psi: Callable[[Tensor], Tensor], num_answers: int, expected: list[float] | None
) -> None:
    gains = psi(P) @ REFERENCE
    optimum = torch.softmax(REFERENCE.log() + gains / 0.5, 0)
    torch.testing.assert_close(minimise(psi, num_answers, tau=0.5), optimum, rtol=0, atol=1e-12)
    if expected is not None:
        assert optimum.tolist() == pytest.approx(expected, abs=1e-6)


def test_hard_labels_are_clamped_and_counted() -> None:
    # Ψ(0.999) = 6.906755; (Ψ(p) − Ψ(1 − p))/2 is the same number.
    logps = completions(0.0, 1.0)
    assert math.sqrt(loss_of(logps, psi="logit", tau=1.0)) == pytest.approx(6.906755, abs=1e-6)
    names = PsipoLoss.METRIC_SUMS
    for psi, clamped in (("logit", 1.0), ("identity", 0.0)):
        objective = PsipoLoss(PsipoObjective(psi=psi))
        sums = objective.sum_metrics(torch.zeros((), dtype=torch.float64), logps)
        assert dict(zip(names, sums.tolist(), strict=True))["psi/clamped"] == clamped


def test_a_psi_that_is_infinite_at_hard_labels_or_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"psi=logit is .*expected finite numbers; raise objective.clamp above 0.0"):
        PsipoLoss(PsipoObjective(psi="logit", clamp=0.0))
    with pytest.raises(ConfigError, match="expected one of identity, logit, or module.name"):
        PsipoLoss(PsipoObjective(psi="log"))


OWN_PSI: dict[str, tuple[Any, str]] = {
    "a_number": (lambda q: 1.0, "returns float for three preferences"),
    "a_mean": (lambda q: q.mean(), r"returns Shape \(\) for three preferences"),
    "raises": (lambda q: q.log_odds, "fails on a tensor of three preferences: .*log_odds"),
}


@pytest.mark.parametrize("name", OWN_PSI)
def test_what_is_no_psi_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = ModuleType("own_psi")
    monkeypatch.setitem(sys.modules, "own_psi", module)
    value, expected = OWN_PSI[name]
    setattr(module, name, value)
    with pytest.raises(ConfigError, match=expected) as caught:
        make_psi(f"own_psi.{name}", 1e-3)
    assert "\n" not in str(caught.value)


def test_a_psi_of_the_users_own_is_shown_at_three_preferences(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_psi")
    monkeypatch.setitem(sys.modules, "own_psi", module)
    module.square = lambda q: q * q
    [line] = PsipoLoss(PsipoObjective(psi="own_psi.square", clamp=0.1)).check_user_code()
    # 0.1² and 0.9²; q² + (1 − q)² depends on q.
    assert "limited to 0.1 and 0.9: Ψ(0), Ψ(½), Ψ(1) = 0.01, 0.25, 0.81; " in line
    assert "not constant" in line
    assert PsipoLoss(PsipoObjective(psi="logit")).check_user_code() == []
