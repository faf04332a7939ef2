"""Config group `adapter`: low-rank matrices beside frozen weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

from spin.config.ranges import bounded, check_ranges
from spin.config.training import Dtype
from spin.errors import require

ALL_LINEAR = "all-linear"
"""Value of `adapter.targets` for every linear layer except the output head."""


class AdapterMethod(Enum):
    """Which weights are trained."""

    none = "none"
    """All weights of the model."""
    lora = "lora"
    """Two low-rank matrices A and B beside each target, and the head of a reward model; the weights
    of the model are frozen."""


class Serve(Enum):
    """What the engine loads of each policy."""

    merged = "merged"
    """A whole model, in which W + (alpha / rank) B A takes the place of W."""
    adapter = "adapter"
    """The adapter alone; the engine starts once with the base and keeps it."""


@dataclass
class AdapterConfig:
    """Low-rank adapters. Dropout is 0, as everywhere in training."""

    method: AdapterMethod = AdapterMethod.none
    """What is trained: none (all weights) or lora."""
    rank: int = bounded(16, at_least=1, at_most=512)
    """Rank of the matrices of a new adapter, 1 to 512."""
    alpha: float = bounded(32.0, above=0, at_most=100_000)
    """The product B A is scaled by alpha / rank; above 0. Of a new adapter."""
    targets: Any = ALL_LINEAR
    """Modules of a new adapter: all-linear, or a list of names such as [q_proj, v_proj]."""
    base_dtype: Dtype = Dtype.float32
    """Precision in which the trainer holds the frozen weights: float32 or bfloat16.

    bfloat16 needs half the memory and `model.dtype=bfloat16`. A and B are always float32."""
    serve: Serve = Serve.merged
    """What the engine loads: merged (a whole model for each policy) or adapter."""
    restart: bool = False
    """Merge the adapter of each stage into the model, and begin a new one in the next stage."""
    path: str | None = None
    """A PEFT adapter folder of the model to start from; null starts with a new adapter.

    It keeps its own rank, alpha and targets."""

    def __post_init__(self) -> None:
        check_ranges(self, "adapter.")
        if self.method is AdapterMethod.none:
            self._check_unused()
        is_list = isinstance(self.targets, list | tuple) and all(isinstance(name, str) for name in self.targets)
        require(
            self.targets == ALL_LINEAR or (is_list and len(self.targets) > 0),
            f"adapter.targets={self.targets}: expected {ALL_LINEAR}, or a list of module names such as [q_proj,v_proj]",
        )
        require(
            not (self.restart and self.serve is Serve.adapter),
            "adapter.restart=true with adapter.serve=adapter: the engine keeps one base, and a restart makes a new "
            "one of each policy; set adapter.serve=merged",
        )
        require(
            not (self.restart and self.path is not None),
            f"adapter.restart=true with adapter.path={self.path}: the adapter would be replaced by a new one after the "
            "first stage; set one of the two",
        )

    @property
    def enabled(self) -> bool:
        """Return True when adapters are trained."""
        return self.method is AdapterMethod.lora

    @property
    def keeps_base(self) -> bool:
        """Return True when the adapters of all stages belong to the same base.

        With a restart, each merged policy is the base of the next adapter.
        """
        return self.enabled and not self.restart

    def _check_unused(self) -> None:
        """Raise ConfigError when a setting is given that nothing reads without adapters."""
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            require(
                value == entry.default,
                f"adapter.{entry.name}={value} without adapters: add adapter=lora, or leave it out",
            )
