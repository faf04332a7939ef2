"""The functions Ψ of ΨPO, and the regression targets that they give to pairs of answers.

    preferences p_ij ──► Ψ ──► gain ḡ_i, the mean over k of Ψ(p_ik) ──► target_ij = ḡ_i − ḡ_j

arXiv 2310.12036: the optimal policy is π_ref(y) · exp(g(y)/τ), where g is the expected Ψ of the
preference for y over an answer of the opponent. All answers of a prompt stand for the opponent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spin.config.run import import_target
from spin.errors import ConfigError, single_line

PsiFunction = Callable[[Tensor], Tensor]
"""Ψ, element by element, of a preference from 0 to 1."""

PSI_FUNCTIONS: dict[str, PsiFunction] = {"identity": lambda q: q, "logit": torch.logit}
"""The functions Ψ of spin by their name in `objective.psi`."""


def make_psi(name: str, clamp: float) -> PsiFunction:
    """Return the function that `objective.psi` names.

    Args:
        name: A key of PSI_FUNCTIONS, or the import path of a function of a tensor.
        clamp: ε; preferences are limited to [ε, 1 − ε], except for the identity, which is finite.

    Raises:
        ConfigError: There is no such function, it returns another shape, or it is not finite
            between ε and 1 − ε.
    """
    if name == "identity":
        return PSI_FUNCTIONS[name]
    if name in PSI_FUNCTIONS:
        function = PSI_FUNCTIONS[name]
    elif "." in name:
        function = import_target("objective.psi", name)
    else:
        raise ConfigError(f"objective.psi={name}: expected one of {', '.join(PSI_FUNCTIONS)}, or module.name")

    def clamped(preferences: Tensor) -> Tensor:
        return function(preferences.clamp(clamp, 1 - clamp))

    # Hard labels are at the ends, where a function such as the logit is infinite.
    preferences = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    try:
        ends = clamped(preferences)
    except Exception as error:  # whatever a user's function can raise
        raise ConfigError(
            f"objective.psi={name} fails on a tensor of three preferences: {single_line(str(error))}; expected a "
            "function of a tensor, element by element"
        ) from error
    if not isinstance(ends, Tensor) or ends.shape != preferences.shape:
        found = type(ends).__name__
        if isinstance(ends, Tensor):
            found = f"Shape {tuple(ends.shape)}"
        raise ConfigError(f"objective.psi={name} returns {found} for three preferences; expected a tensor, Shape (3,)")
    if not bool(torch.isfinite(ends).all()):
        raise ConfigError(
            f"objective.psi={name} is {ends.tolist()} at preferences of 0, 0.5 and 1, expected finite numbers; "
            f"raise objective.clamp above {clamp}"
        )
    return clamped


def is_antisymmetric(psi: PsiFunction) -> bool:
    """Return whether Ψ(q) + Ψ(1 − q) is the same for all q.

    Such a Ψ gives unbiased targets from two answers; any other one needs a third answer.
    """
    # Away from 0 and 1, where a clamp would hide the difference.
    q = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    sums = psi(q) + psi(1 - q)
    return bool((sums - sums[0]).abs().max() < 1e-9)


def compute_targets(preferences: Tensor, psi: PsiFunction) -> Tensor:
    """Return target_ij for every two answers of a prompt.

    If Ψ is antisymmetric, target_ij = ḡ_i − ḡ_j, where ḡ_i is the mean over all k of Ψ(p_ik). Else
    it is the mean of Ψ(p_ik) − Ψ(p_jk) over the answers k other than i and j.

    Args:
        preferences: p_ij = P(answer i is better than answer j), ½ for i = j. Shape (…, K, K).
        psi: Ψ, from `make_psi`.

    Returns:
        The targets, which change their sign when i and j are exchanged. Shape (…, K, K).

    Raises:
        ValueError: Ψ is not antisymmetric, and there are fewer than three answers.
    """
    # Row i of `values` is about answer i.
    values = psi(preferences)
    gains = values.sum(-1)
    num_answers = preferences.shape[-1]
    if is_antisymmetric(psi):
        return (gains.unsqueeze(-1) - gains.unsqueeze(-2)) / num_answers
    if num_answers < 3:
        raise ValueError(f"objective.psi needs at least 3 judged answers of a prompt, found {num_answers}")

    # Of the sum over all k, leave out k = i and k = j.
    own = values.diagonal(dim1=-2, dim2=-1)
    gains_of_others = gains.unsqueeze(-1) - own.unsqueeze(-1) - values
    return (gains_of_others - gains_of_others.transpose(-2, -1)) / (num_answers - 2)
