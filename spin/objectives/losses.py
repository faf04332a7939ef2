"""Losses as pure functions of log-probabilities. They import torch alone.

The keyword arguments of a loss are the keys of its config group. `PAIR_LOSSES` lists the losses on
pairs by name. A loss of your own is a function like these, named by `objective._target_`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """What a loss on pairs is computed from; all tensors have Shape (batch,).

    Log-probabilities are sums over the tokens of a completion, in nats.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """Number of tokens of the chosen completion."""
    rejected_tokens: Tensor
    """Number of tokens of the rejected completion."""
    preference: Tensor
    """P(chosen is better than rejected), from 0 to 1; 1 is a hard label."""
    chosen_win_rate: Tensor
    """P(chosen is better than an answer of the opponent), from 0 to 1; SPPO only."""
    rejected_win_rate: Tensor
    """P(rejected is better than an answer of the opponent), from 0 to 1; SPPO only."""

    @property
    def chosen_ratio(self) -> Tensor:
        """log π(y|x) − log π_ref(y|x) of the chosen completions. Shape (batch,)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log π(y'|x) − log π_ref(y'|x) of the rejected completions. Shape (batch,)."""
        return self.policy_rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """Δ, the chosen minus the rejected log-ratio. Shape (batch,)."""
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True)
class RatingLogps:
    """What a loss on single completions is computed from; all tensors have Shape (batch,)."""

    policy: Tensor
    reference: Tensor
    desirability: Tensor
    """P(the completion is desirable), from 0 to 1; 1 and 0 are hard labels."""

    @property
    def ratio(self) -> Tensor:
        """r = log π(y|x) − log π_ref(y|x). Shape (batch,)."""
        return self.policy - self.reference


def average_over_labels(loss: Callable[[Tensor], Tensor], t: Tensor, preference: Tensor, smoothing: float) -> Tensor:
    """Return p'·loss(t) + (1 − p')·loss(−t) with p' = (1 − ε)p + ε(1 − p).

    Args:
        loss: A function of β times the margin, element by element.
        t: β times the margin. Shape (batch,).
        preference: p, the probability of the label. Shape (batch,).
        smoothing: ε, the assumed share of wrong labels.

    Returns:
        The expected loss. Shape (batch,). A term of weight 0 adds exactly 0, also to the gradient,
        so that hard labels give the plain loss bit for bit.
    """
    weight = (1 - smoothing) * preference + smoothing * (1 - preference)
    flipped_weight = (1 - smoothing) * (1 - preference) + smoothing * preference
    # A term of weight 0 is computed at 0: loss(−t) may overflow, and 0 times infinity is NaN.
    zero = torch.zeros_like(t)
    plain = loss(torch.where(weight > 0, t, zero))
    flipped = loss(torch.where(flipped_weight > 0, -t, zero))
    return weight * plain + flipped_weight * flipped


def _logistic(t: Tensor) -> Tensor:
    return F.softplus(-t)


def _hinge(t: Tensor) -> Tensor:
    return F.relu(1 - t)


def _exponential(t: Tensor) -> Tensor:
    return torch.exp(-t)


LINKS: dict[str, Callable[[Tensor], Tensor]] = {"logistic": _logistic, "hinge": _hinge, "exponential": _exponential}
"""The link functions of SPIN: log(1 + e^−t), max(0, 1 − t) and e^−t."""


def sft(policy: Tensor) -> Tensor:
    """Return −log π(y|x). Shape (batch,).

    The trainer divides the sum over a step by the number of completion tokens of the step.
    """
    return -policy


def spin(logps: PairLogps, *, beta: float, link: str) -> Tensor:
    """Return ℓ(βΔ), arXiv 2401.01335 eq. 4.7. Shape (batch,).

    Raises:
        ValueError: `link` is not in LINKS.
    """
    if link not in LINKS:
        raise ValueError(f"link {link!r}: expected logistic, hinge or exponential")
    return average_over_labels(LINKS[link], beta * logps.margin, logps.preference, smoothing=0.0)


def dpo(logps: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return −p' log σ(βΔ) − (1 − p') log σ(−βΔ), arXiv 2305.18290 eq. 7. Shape (batch,).

    p' is the preference with the label smoothing ε of the authors' code, (1 − ε)p + ε(1 − p).
    """
    return average_over_labels(_logistic, beta * logps.margin, logps.preference, label_smoothing)


def ipo(logps: PairLogps, *, beta: float, length_normalize: bool = False) -> Tensor:
    """Return (Δ − (2p − 1)/(2β))², arXiv 2310.12036 eq. 17. Shape (batch,).

    With `length_normalize`, Δ is made of means over tokens, as in TRL and HALOs.
    """
    margin = logps.margin
    if length_normalize:
        chosen_mean = logps.chosen_ratio / logps.chosen_tokens.clamp(min=1)
        rejected_mean = logps.rejected_ratio / logps.rejected_tokens.clamp(min=1)
        margin = chosen_mean - rejected_mean
    return (margin - (2 * logps.preference - 1) / (2 * beta)) ** 2


def slic(logps: PairLogps, *, link: str, beta: float, delta: float, regularization: float) -> Tensor:
    """Return the loss of SLiC, arXiv 2305.10425. Shape (batch,).

    `calibrated`: max(0, δ − log π(y|x) + log π(y'|x)) − λ log π(y|x), without a reference; a soft
    label averages it over both orders. `margin`: max(0, 1 − βΔ).

    Raises:
        ValueError: `link` is neither of the two.
    """
    match link:
        case "calibrated":
            p = logps.preference
            likelihood = p * logps.policy_chosen + (1 - p) * logps.policy_rejected
            calibration = p * F.relu(delta - logps.policy_chosen + logps.policy_rejected)
            calibration = calibration + (1 - p) * F.relu(delta - logps.policy_rejected + logps.policy_chosen)
            return calibration - regularization * likelihood
        case "margin":
            return average_over_labels(_hinge, beta * logps.margin, logps.preference, smoothing=0.0)
    raise ValueError(f"link {link!r}: expected calibrated or margin")


def kto(
    logps: RatingLogps, kl_baseline: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Return the loss of KTO, arXiv 2402.01306 eq. 8. Shape (batch,).

    λ_D (1 − σ(β(r − z))) where the completion is desirable, λ_U (1 − σ(β(z − r))) where it is not;
    the expectation of both for a soft label.

    Args:
        logps: The completions of a batch.
        kl_baseline: z = max(0, mean log-ratio of mismatched prompts and completions) over the
            optimizer step; no gradient flows through it. Shape ().
        beta: Scale of the log-ratio.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
    """
    z = kl_baseline.detach()
    desirable = desirable_weight * (1 - torch.sigmoid(beta * (logps.ratio - z)))
    undesirable = undesirable_weight * (1 - torch.sigmoid(beta * (z - logps.ratio)))
    return logps.desirability * desirable + (1 - logps.desirability) * undesirable


def kto_pair(logps: PairLogps, kl_baselines: Tensor, *, beta: float) -> Tensor:
    """Return the mean of 1 − σ(β(r_w − z_l)) and 1 − σ(β(z_w − r_l)). Shape (batch,).

    The author of KTO calls it weaker than `kto`. Soft labels are not taken into account.

    Args:
        logps: The pairs of a batch.
        kl_baselines: (z_w, z_l), means over the optimizer step of the chosen and of the rejected
            log-ratios, at least 0; no gradient flows through them. Shape (2,).
        beta: Scale of the log-ratios.
    """
    z = kl_baselines.detach()
    chosen = 1 - torch.sigmoid(beta * (logps.chosen_ratio - z[1]))
    rejected = 1 - torch.sigmoid(beta * (z[0] - logps.rejected_ratio))
    return (chosen + rejected) / 2


def sppo(logps: PairLogps, *, beta: float) -> Tensor:
    """Return ½[(a − (P_w − ½)/β)² + (b − (P_l − ½)/β)²]. Shape (batch,).

    a and b are the log-ratios of the chosen and of the rejected completion to the opponent, P_w and
    P_l their win rates against it; 1/β is the paper's η. arXiv 2405.00675 eq. 4.7.
    """
    chosen = (logps.chosen_ratio - (logps.chosen_win_rate - 0.5) / beta) ** 2
    rejected = (logps.rejected_ratio - (logps.rejected_win_rate - 0.5) / beta) ** 2
    return (chosen + rejected) / 2


def space(logps: PairLogps, *, mu: float) -> Tensor:
    """Return −log σ_μ(a) − μ log σ_{1/μ}(−b) with σ_m(x) = 1/(1 + m e^−x). Shape (batch,).

    a and b are the log-ratios of the chosen and of the rejected completion to the opponent, each of
    which is judged alone. A soft label averages over both orders. arXiv 2512.07175.
    """
    log_mu = math.log(mu)

    def one_order(chosen_ratio: Tensor, rejected_ratio: Tensor) -> Tensor:
        # −log σ_m(x) = softplus(log m − x)
        return F.softplus(log_mu - chosen_ratio) + mu * F.softplus(rejected_ratio - log_mu)

    p = logps.preference
    labelled = one_order(logps.chosen_ratio, logps.rejected_ratio)
    swapped = one_order(logps.rejected_ratio, logps.chosen_ratio)
    return p * labelled + (1 - p) * swapped


def irpo(logps: PairLogps, *, beta: float, nll_weight: float) -> Tensor:
    """Return −log σ(βΔ) − α log π(y|x)/|y| of the chosen completion. Shape (batch,).

    A soft label averages both terms over the two orders. arXiv 2404.19733 eq. 1; α is `nll_weight`.
    """
    p = logps.preference
    chosen_nll = -logps.policy_chosen / logps.chosen_tokens.clamp(min=1)
    rejected_nll = -logps.policy_rejected / logps.rejected_tokens.clamp(min=1)
    nll = p * chosen_nll + (1 - p) * rejected_nll
    return dpo(logps, beta=beta) + nll_weight * nll


def psipo(logps: PairLogps, target: Tensor, *, tau: float) -> Tensor:
    """Return (Δ − target/τ)², arXiv 2310.12036 eq. 10 and 17. Shape (batch,).

    Args:
        logps: The pairs of a batch.
        target: ḡ_i − ḡ_j of the two completions; see `spin.objectives.psi`. Shape (batch,).
        tau: τ, the weight of the KL divergence to the reference.
    """
    return (logps.margin - target / tau) ** 2


def bradley_terry(gap: Tensor, preference: Tensor) -> Tensor:
    """Return −p log σ(d) − (1 − p) log σ(−d), arXiv 2203.02155 eq. 1. Shape (pairs,).

    Args:
        gap: d, the reward of the first answer of each pair minus that of the second and a margin.
        preference: p, the probability that the first answer is better. Shape (pairs,).
    """
    return preference * F.softplus(-gap) + (1 - preference) * F.softplus(gap)


PAIR_LOSSES: dict[str, Callable[..., Tensor]] = {
    "spin": spin,
    "dpo": dpo,
    "ipo": ipo,
    "slic": slic,
    "sppo": sppo,
    "space": space,
    "irpo": irpo,
}
"""The losses that need nothing but the pairs of a batch, by the name of their config group."""
