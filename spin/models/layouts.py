"""Which layout of tokens is exact for a model, and the fallback to `padded`.

    shared   a prompt once, its completions behind it
    packed   each completion behind a prompt of its own, no padding
    padded   a right-padded batch through the unchanged model: slow, but right for every model

`choose_layout` tries them in this order and takes the first that agrees with `padded`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spin.config.training import Dtype
from spin.models.packing import Group, one_by_one

LAYOUTS = ("shared", "packed", "padded")

TOLERANCE = {Dtype.float32: (1e-4, 1e-3), Dtype.bfloat16: (2e-2, 1e-1)}
"""Allowed difference from `padded`: of log-probabilities in nats per token, and the relative error
of the whole gradient."""

LARGE_MODEL = 1 << 30
"""Number of weights beyond which only gradients of small parameters are compared."""

SMALL_PARAMETER = 1 << 20
"""Most weights of a small parameter."""

LogpsFunction = Callable[[Sequence[Group], str, Dtype], Tensor]
"""Return summed log-probabilities of groups in a layout and a dtype. Shape (completions,)."""


@dataclass(frozen=True)
class ForwardChoice:
    """How `GroupLogps` computes, as `GroupLogps.choose` found it to be exact."""

    layout: str
    flash: bool
    """True if a flash kernel computes the attention on a GPU; otherwise FlexAttention does."""
    compiled: bool
    """True if the layers are compiled."""


@dataclass(frozen=True)
class Measurement:
    """What a layout computes for a few groups."""

    logps: Tensor
    """Shape (completions,)."""
    gradients: dict[str, Tensor]
    """In main memory, by the name of the parameter."""


def choose_layout(
    model: nn.Module, compute: LogpsFunction, groups: Sequence[Group], dtype: Dtype
) -> tuple[str, str | None]:
    """Return the first layout that agrees with `padded`, and why others do not.

    Log-probabilities and the gradient are compared within TOLERANCE. No gradient is left behind.

    Args:
        model: The model, of which the parameters are read.
        compute: Computes log-probabilities.
        groups: A few real groups, as `add_company` returns them.
        dtype: Dtype of training.

    Returns:
        The layout, and one line about the layouts that were tried before it; None if the first one
        was taken.
    """
    # float32 tells a wrong layout from rounding. Frozen weights in bfloat16 have no products in it.
    dtypes = dict.fromkeys((Dtype.float32, dtype))
    if any(parameter.dtype is torch.bfloat16 for parameter in model.parameters()):
        dtypes = dict.fromkeys((dtype,))
    reasons: list[str] = []
    for layout in LAYOUTS[:-1]:
        problem = None
        for each in dtypes:
            # `padded` is measured again for each layout, to hold two sets of gradients at most.
            expected = measure(model, compute, groups, "padded", each)
            # A model may fail in any of these ways in a layout that it does not support.
            try:
                problem = compare(expected, measure(model, compute, groups, layout, each), groups, each)
            except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
                problem = describe_error(error)
            if problem is not None:
                break
        if problem is None:
            return layout, "; ".join(reasons) or None
        reasons.append(f"{layout} is not exact for {type(model).__name__} ({problem})")
    return "padded", "; ".join(reasons)


def describe_error(error: Exception) -> str:
    """Return the beginning of an error in one line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def list_compared(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients are compared, by name.

    In a large model these are the norms and biases of all layers: the gradient of every layer
    passes through those before it, and two sets of all gradients would fill the main memory.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    small = {name: parameter for name, parameter in trained.items() if parameter.numel() <= SMALL_PARAMETER}
    if sum(parameter.numel() for parameter in trained.values()) > LARGE_MODEL and small:
        return small
    return trained


def measure(
    model: nn.Module, compute: LogpsFunction, groups: Sequence[Group], layout: str, dtype: Dtype
) -> Measurement:
    """Return log-probabilities, and the gradient of their sum with different weights."""
    # `padded` takes one sequence at a time, because the logits of all positions need much memory.
    parts: list[Sequence[Group]] = [groups]
    if layout == "padded":
        parts = [[group] for group in one_by_one(groups)]
    parameters = list_compared(model)
    num_completions = sum(len(group.completions) for group in groups)
    weights = torch.linspace(-1, 1, num_completions, dtype=torch.float64) + 0.1

    found: list[Tensor] = []
    totals: dict[str, Tensor] = {}
    done = 0
    for part in parts:
        with torch.enable_grad():
            logps = compute(part, layout, dtype)
            loss = (logps * weights[done : done + len(logps)].to(logps.device)).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        done += len(logps)
        found.append(logps.detach())
        # Keep the sum in main memory, off the device.
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if name in totals:
                totals[name].add_(gradient.cpu())
            else:
                totals[name] = gradient.cpu()
    return Measurement(torch.cat(found), totals)


def compare(expected: Measurement, found: Measurement, groups: Sequence[Group], dtype: Dtype) -> str | None:
    """Return what is wrong with a layout, or None."""
    allowed_gap, allowed_error = TOLERANCE[dtype]

    # Log-probabilities, per token. The comparisons are written so that NaN fails.
    lengths = []
    for group in groups:
        lengths += [len(completion) for completion in group.completions]
    tokens = expected.logps.new_tensor(lengths)
    gap = float(((expected.logps - found.logps).abs() / tokens).max())
    if not gap <= allowed_gap:
        return f"log-probabilities differ by {gap:.1e} nats a token, allowed {allowed_gap:.0e}"

    # The gradient as one vector.
    differing = expected.gradients.keys() ^ found.gradients.keys()
    if differing:
        return f"{len(differing)} parameters get a gradient in one of the two only"
    norm = _norm(list(expected.gradients.values()))
    error = _norm([gradient - found.gradients[name] for name, gradient in expected.gradients.items()])
    if not error <= allowed_error * norm:
        relative = error / norm if norm else error
        return f"gradients differ by {relative:.1e}, allowed {allowed_error:.0e}"
    return None


def _norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    norms = [float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in tensors]
    return math.hypot(*norms)


def add_company(groups: Sequence[Group]) -> list[Group]:
    """Return at least two groups, one of them with two completions.

    With a single sequence, a layout that lets sequences see each other would go unnoticed.
    """
    groups = list(groups)
    if max(len(group.completions) for group in groups) < 2:
        first = groups[0]
        # A completion that is in no group: the last one backwards, twice.
        another = groups[-1].completions[0][::-1] * 2
        groups.append(Group(first.prompt_ids, [first.completions[0], another]))
    if len(groups) == 1:
        return groups * 2
    return groups


def smallest_window(config: Any) -> int | None:
    """Return the shortest attention window of a layer (sliding or chunked) in tokens.

    None means that every layer sees all tokens.
    """
    config = config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    layer_types = getattr(config, "layer_types", None)
    if layer_types and all(layer_type == "full_attention" for layer_type in layer_types):
        return None
    windows = []
    for name in ("sliding_window", "attention_chunk_size", "window_size", "local_attention"):
        window = getattr(config, name, None)
        if isinstance(window, int) and window > 0:
            windows.append(int(window))
    return min(windows, default=None)
