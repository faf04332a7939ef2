"""Losses and gradients against TRL's own `_compute_loss`, in float64.

TRL's trainers get log-probabilities in place of a model's.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from spin.objectives.losses import PairLogps, RatingLogps, dpo, ipo, irpo, kto, slic, space, spin, sppo

PAIRS, LENGTH = 6, 9


@pytest.fixture(scope="module")
def trl() -> SimpleNamespace:
    """What the two loss functions read of a trainer."""
    from trl import DPOTrainer, KTOTrainer

    settings = {
        "model": torch.nn.Linear(1, 1),
        "accelerator": Accelerator(cpu=True),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_weights": [1.0],
        "use_weighting": False,
        "calculate_KL": True,
        "loss_type": "kto",
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(dpo=DPOTrainer, kto=KTOTrainer, settings=settings)


def outputs(log_probs: Tensor) -> SimpleNamespace:
    zero = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zero, mean_logits=zero, is_top1=zero.bool())


class Draw:
    """Random token log-probabilities of 2 × PAIRS sequences and of their reference.

    Completions have 1 to LENGTH − 1 tokens; the chosen ones come first.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask = torch.zeros(2 * PAIRS, LENGTH, dtype=torch.long)
        for row in range(2 * PAIRS):
            self.mask[row, int(torch.randint(1, LENGTH, (), generator=generator)) :] = 1
        self.tokens = (
            -3 * torch.rand(2 * PAIRS, LENGTH - 1, dtype=torch.float64, generator=generator) * self.mask[:, 1:]
        ).requires_grad_()
        self.reference = self.tokens.detach().sum(1) + torch.randn(2 * PAIRS, dtype=torch.float64, generator=generator)
        self.mismatched = torch.randn(2 * PAIRS, dtype=torch.float64, generator=generator) + 0.7

    def pairs(self, preference: float = 1.0) -> PairLogps:
        logps, lengths = self.tokens.sum(1), self.mask.sum(1).double()
        return PairLogps(
            logps[:PAIRS],
            logps[PAIRS:],
            self.reference[:PAIRS],
            self.reference[PAIRS:],
            lengths[:PAIRS],
            lengths[PAIRS:],
            torch.full((PAIRS,), preference, dtype=torch.float64),
            torch.full((PAIRS,), preference, dtype=torch.float64),
            torch.full((PAIRS,), 1 - preference, dtype=torch.float64),
        )

    def gradient(self, loss: Tensor) -> Tensor:
        [gradient] = torch.autograd.grad(loss, self.tokens)
        return gradient


def trl_dpo(trl: SimpleNamespace, draw: Draw, loss_type: str, beta: float, label_smoothing: float = 0.0) -> Tensor:
    self = SimpleNamespace(
        **trl.settings,
        loss_types=[loss_type],
        beta=beta,
        label_smoothing=label_smoothing,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "input_ids": torch.ones_like(draw.mask),
        "attention_mask": torch.ones_like(draw.mask),
        "completion_mask": draw.mask,
        "ref_chosen_logps": draw.reference[:PAIRS],
        "ref_rejected_logps": draw.reference[PAIRS:],
    }
    return trl.dpo._compute_loss(self, lambda **_: outputs(draw.tokens), inputs, False)


def trl_irpo(trl: SimpleNamespace, draw: Draw, beta: float, nll_weight: float) -> Tensor:
    """Return TRL's sum of `sigmoid` and `sft`, pair by pair.

    TRL's NLL is a mean over the tokens of a batch, that of IRPO over those of each completion: they
    are the same for a batch of one pair.
    """
    settings = {**trl.settings, "loss_weights": [1.0, nll_weight]}
    losses = []
    for index in range(PAIRS):
        rows = [index, index + PAIRS]
        self = SimpleNamespace(
            **settings,
            loss_types=["sigmoid", "sft"],
            beta=beta,
            label_smoothing=0.0,
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        mask = draw.mask[rows]
        inputs = {
            "input_ids": torch.ones_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": draw.reference[rows[:1]],
            "ref_rejected_logps": draw.reference[rows[1:]],
        }
        tokens = draw.tokens[rows]
        losses.append(trl.dpo._compute_loss(self, lambda tokens=tokens, **_: outputs(tokens), inputs, False))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("beta", "nll_weight"), [(0.1, 1.0), (1.0, 0.2)])
def test_irpo_is_trls_sigmoid_with_the_nll_of_the_chosen_completion(
    trl: SimpleNamespace, beta: float, nll_weight: float, seed: int
) -> None:
    draw = Draw(seed)
    mine = irpo(draw.pairs(), beta=beta, nll_weight=nll_weight).mean()
    theirs = trl_irpo(trl, draw, beta, nll_weight)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    # Tokens of the prompt have log-probability 0 here, and no part in the loss of a real model.
    completion = draw.mask[:, 1:]
    ours = draw.gradient(mine) * completion
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, draw.gradient(theirs) * completion, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", ["sigmoid", "spin", "hinge", "spin hinge", "ipo"])
def test_losses_and_gradients_of_pairs_are_trls(trl: SimpleNamespace, name: str, beta: float, seed: int) -> None:
    draw = Draw(seed)
    ours: dict[str, tuple[str, Any]] = {
        "sigmoid": ("sigmoid", lambda p: dpo(p, beta=beta)),
        "spin": ("sigmoid", lambda p: spin(p, beta=beta, link="logistic")),
        "hinge": ("hinge", lambda p: slic(p, link="margin", beta=beta, delta=1.0, regularization=0.0)),
        "spin hinge": ("hinge", lambda p: spin(p, beta=beta, link="hinge")),
        "ipo": ("ipo", lambda p: ipo(p, beta=beta, length_normalize=True)),
    }
    loss_type, function = ours[name]
    mine, theirs = function(draw.pairs()).mean(), trl_dpo(trl, draw, loss_type, beta)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    gradient = draw.gradient(mine)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, draw.gradient(theirs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_sppo_and_space_with_hard_labels_are_trls(trl: SimpleNamespace, seed: int) -> None:
    draw = Draw(seed)
    # TRL takes the sum of the two squares, SPPO's code the mean. SPACE with μ = 1 is BCO on pairs.
    for mine, theirs in (
        (sppo(draw.pairs(), beta=0.1).mean(), trl_dpo(trl, draw, "sppo_hard", 0.1) / 2),
        (space(draw.pairs(), mu=1.0).mean(), trl_dpo(trl, draw, "bco_pair", 1.0)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        torch.testing.assert_close(draw.gradient(mine), draw.gradient(theirs), rtol=0, atol=1e-10)


def test_label_smoothing_mixes_trls_loss_with_that_of_the_flipped_label(trl: SimpleNamespace) -> None:
    """TRL offers the robust form, ((1 − ε) L(Δ) − ε L(−Δ)) / (1 − 2ε); L(−Δ) is taken out of it."""
    draw, epsilon = Draw(2), 0.2
    to_plain, robust = (trl_dpo(trl, draw, kind, 0.5, epsilon) for kind in ("sigmoid", "robust"))
    flipped = ((1 - epsilon) * to_plain - (1 - 2 * epsilon) * robust) / epsilon
    mine, theirs = (
        dpo(draw.pairs(), beta=0.5, label_smoothing=epsilon).mean(),
        (1 - epsilon) * to_plain + epsilon * flipped,
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(draw.gradient(mine), draw.gradient(theirs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_a_soft_label_mixes_trls_loss_with_that_of_the_swapped_pairs(trl: SimpleNamespace, name: str) -> None:
    """TRL takes no preference a row; its loss is computed once as it is and once swapped."""
    draw, swapped, p, beta = Draw(4), Draw(4), 0.8, 0.5
    order = [*range(PAIRS, 2 * PAIRS), *range(PAIRS)]
    swapped.mask, swapped.reference = draw.mask[order], draw.reference[order]
    swapped.tokens = draw.tokens[order]
    theirs = p * trl_dpo(trl, draw, name, beta) + (1 - p) * trl_dpo(trl, swapped, name, beta)
    ours = {
        "sigmoid": lambda logps: dpo(logps, beta=beta),
        "hinge": lambda logps: spin(logps, beta=beta, link="hinge"),
        "ipo": lambda logps: ipo(logps, beta=beta, length_normalize=True),
    }
    mine = ours[name](draw.pairs(p)).mean()
    if name == "ipo":
        # The mixture of two squares is larger by a constant, 4p(1 − p)/(2β)².
        mine = mine + 4 * p * (1 - p) / (2 * beta) ** 2
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(draw.gradient(mine), draw.gradient(theirs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_kto_and_its_z_are_trls(trl: SimpleNamespace, beta: float, sign: float) -> None:
    draw = Draw(3)
    desirable = torch.tensor([True, False, True] * (2 * PAIRS // 3))
    mismatch = sign * draw.mismatched  # of one sign z is the mean, of the other it is clamped
    self = SimpleNamespace(
        **trl.settings,
        beta=beta,
        desirable_weight=1.3,
        undesirable_weight=0.6,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _compute_kl_logps=lambda *_: mismatch,
    )
    batch = {
        "input_ids": torch.ones_like(draw.mask),
        "attention_mask": torch.ones_like(draw.mask),
        "completion_mask": draw.mask,
        "label": desirable,
        "ref_logps": draw.reference,
        "ref_KL_logps": torch.zeros_like(mismatch),
    }
    theirs = trl.kto._compute_loss(self, lambda **_: outputs(draw.tokens), batch, False)
    z = mismatch.mean().clamp(min=0)
    assert (z > 0) == (sign > 0)
    mine = kto(
        RatingLogps(draw.tokens.sum(1), draw.reference, desirable.double()),
        z,
        beta=beta,
        desirable_weight=1.3,
        undesirable_weight=0.6,
    ).mean()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(draw.gradient(mine), draw.gradient(theirs), rtol=0, atol=1e-10)
    assert self._metrics["train"]["kl"] == [float(z)]
