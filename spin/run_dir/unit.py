"""A unit of a run: a file or folder that is finished as a whole, and the kinds of units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.run_dir.paths import Stage

MODEL = "model"
"""Ledger line with the digest of the model that the run was given."""

EXPECTED = "expected"
"""Ledger line with the seconds of an iteration by kind of work, as estimated at the launch."""

LAUNCHES = "launches"
"""Ledger line with the ``total`` seconds of all launches, the number of them that are ``left_out``,
and whether one is ``running``."""

LAUNCH_LINES = (EXPECTED, LAUNCHES)
"""Ledger lines that each launch writes, whether it finishes a unit or not."""

PROMOTED_KINDS = ("policy", "reward_model")
"""Kinds of units that are folders with weights, named by a digest."""

LABELLED_KINDS = ("labelled-pairs", "ratings")
"""Kinds of units made from a prepared set of labelled data, which has the same name."""

RANKING_KINDS = ("rankings", "rankings-heldout")
"""Kinds of units with the judged samples of an iteration, for a reward model."""

TRAINED_KINDS = ("pairs", *LABELLED_KINDS)
"""Kinds of units whose rows are trained on."""

ROW_KINDS = ("samples", "rewards", "judgements", *TRAINED_KINDS)
"""Kinds of units that hold rows. Only the policy of their own stage needs them."""


@dataclass(frozen=True)
class Unit:
    """One file or folder that a run makes."""

    name: str
    """Name of its ledger line, for example ``iterations/000/samples/4``."""
    stage: Stage
    kind: str
    """``config``, ``samples``, ``rewards``, ``judgements``, ``pairs``, ``labelled-pairs``,
    ``ratings``, ``policy``, ``benchmark``, ``lm_eval``, ``rankings``, ``rankings-heldout``,
    ``reward_model`` or ``evaluation``.
    """
    sources: tuple[str, ...] = ()
    """Names of the units that it is made from.

    `FileFacts.source` is a digest of the first one and, for pairs, of the rewards and judgements.
    """
    shard: int | None = None
    """Number of the shard; None if the unit is no shard."""
    prompts: range = range(0)
    """Positions in the training set of the prompts of a shard."""
    reward_source: str = ""
    """Name of the reward source, for `rewards`."""
    settings: Any = None
    """Settings that the finished unit must have been made with; None if all settings are valid."""

    @property
    def path(self) -> Path:
        """The file or folder of the unit."""
        if self.shard is not None and self.kind == "rewards":
            return self.stage.rewards(self.reward_source, self.shard)
        if self.shard is not None:
            shards = {
                "samples": self.stage.samples,
                "judgements": self.stage.judgements,
                "pairs": self.stage.pairs,
            }
            return shards[self.kind](self.shard)
        if self.kind in LABELLED_KINDS:
            return self.stage.labelled(self.kind)
        if self.kind in RANKING_KINDS:
            return self.stage.rankings(self.kind)
        paths = {
            "config": self.stage.config,
            "policy": self.stage.policy,
            "benchmark": self.stage.benchmark,
            "lm_eval": self.stage.lm_eval,
            "reward_model": self.stage.reward_model,
            "evaluation": self.stage.evaluation,
        }
        return paths[self.kind]


def kind_name(stage: Stage, kind: str) -> str:
    """Return the name of one kind of work of a stage, such as ``iterations/000/samples``."""
    return f"{stage.name}/{kind}"
