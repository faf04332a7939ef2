"""Config groups `model`, `data`, `generation`, `feedback` and `pairs`."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from spin.config.cluster import Placement
from spin.config.judge import JudgedPairsConfig
from spin.config.ranges import bounded, check_ranges
from spin.config.rollouts import RolloutsConfig
from spin.config.training import Dtype
from spin.errors import ConfigError, require


class Turn(Enum):
    """The assistant turn of `messages` that is the target; the turns before it are the prompt."""

    first = "first"
    """The first assistant turn, as in the SPIN paper."""
    last = "last"
    """The last assistant turn."""


@dataclass
class ModelConfig:
    """The starting model."""

    path: str = MISSING
    """A local folder, a Hub id, or ``builtin:tiny``."""
    dtype: Dtype = Dtype.float32
    """Precision of the forward pass and of the engine: float32 or bfloat16."""
    chat_template: str = "auto"
    """`auto` (the tokenizer's own), a name among its own, `chatml`, `plain`, or a .jinja file."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as ``{enable_thinking: false}``."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass
class PretrainingConfig:
    """Rows whose likelihood `objective=ppo` trains beside the answers (PPO-ptx)."""

    path: str | None = None
    """Rows with a column `text`, or with prompts and answers, as in `data.path`; null takes the
    ground truths of the training set."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Rows to use, at least 1; null uses all. Of texts, it counts the pieces they are cut into."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.ptx.")

    @property
    def has_own_rows(self) -> bool:
        """True if the rows are others than all ground truths of the training set."""
        return self.path is not None or self.limit is not None


@dataclass
class DataConfig:
    """The supervised data set and the held-out rows."""

    path: str = MISSING
    """A .jsonl, .json, .csv or .parquet file, a folder of datasets, a Hub id, or a builtin set.

    A Hub id may have a subset, as in ``openai/gsm8k:main``."""
    split: str = "train"
    """Split of a Hub data set."""
    turn: Turn = Turn.last
    """Assistant turn of `messages` that is the target: first or last. Other formats have one."""
    limit: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Rows to use, at least 1; null uses all."""
    # Held-out rows.
    eval_path: str | None = None
    """Held-out rows, as in `path`; null takes them out of `path`."""
    eval_split: str = "test"
    """Split of a Hub data set of held-out rows."""
    eval_limit: int = bounded(200, at_least=1, at_most=1_000_000_000)
    """Held-out rows, at least 1. The interval of a rate narrows with their square root."""
    answer_pattern: str | None = None
    """Regular expression; its last match (group 1) is the answer. Null compares whole texts."""
    ptx: PretrainingConfig = field(default_factory=PretrainingConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "data.")


SHARED_SHARE = 0.4
"""Share of a GPU's memory for an engine beside a trainer that keeps its own."""

COLOCATED_SHARE = 0.8
"""The same where the trainer gives its memory back. The rest is for the contexts of processes that
wait and for what they cannot give back."""


@dataclass
class GenerationConfig:
    """Generation of the opponent's answers."""

    # Lengths.
    max_tokens: int = bounded(256, at_least=1, at_most=1_000_000)
    """Longest answer in tokens, at least 1; longer answers are truncated."""
    max_prompt_tokens: int = bounded(256, at_least=1, at_most=10_000_000)
    """Longest prompt in tokens, at least 1; rows with a longer prompt are dropped and counted."""
    # Sampling.
    temperature: float = bounded(1.0, at_least=0.01, at_most=10)
    """Sampling temperature, 0.01 to 10. The default samples from the policy itself.

    vLLM takes lower temperatures for 0.01; greedy answers are measured in any case."""
    top_p: float = bounded(1.0, above=0, at_most=1)
    """Share of the probability mass to sample from, above 0 and at most 1."""
    samples_per_prompt: int = bounded(1, at_least=1, at_most=1024)
    """Answers sampled for each prompt, at least 1."""
    prompts_per_iteration: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Prompts of an iteration, at least 1; null takes all.

    Each iteration takes the next prompts in an order that `seed` fixes, and begins anew after the
    last one."""
    # Engines and their work.
    replicas: int = bounded(1, at_least=1, at_most=1024)
    """Engines, at least 1; their number changes no result."""
    tensor_parallel_size: int = bounded(1, at_least=1, at_most=1024)
    """GPUs that share one engine's model, at least 1."""
    shard_size: int = bounded(256, at_least=1, at_most=1_000_000)
    """Prompts in one shard, at least 1; a shard is the unit of generation and of resume."""
    # Memory of an engine.
    kv_cache_gib: float = bounded(1.0, at_least=0.05, at_most=10_000)
    """GiB of key-value cache of an engine on a CPU, at least 0.05; unused on a GPU."""
    gpu_memory_utilization: float | None = bounded(None, above=0, at_most=1)
    """Share of a GPU's memory for an engine, above 0 and at most 1.

    Null takes 0.8 with `cluster.placement=colocated`, where the trainer's memory is free while the
    engine works, and otherwise 0.4, because a trainer may need the rest."""

    def __post_init__(self) -> None:
        check_ranges(self, "generation.")

    def find_memory_share(self, placement: Placement) -> float:
        """Return the share of a GPU's memory for an engine."""
        if self.gpu_memory_utilization is not None:
            return self.gpu_memory_utilization
        if placement is Placement.colocated:
            return COLOCATED_SHARE
        return SHARED_SHARE


class RankedPairs(Enum):
    """The pairs that are made of several ranked answers to one prompt."""

    best_worst = "best_worst"
    """The best answer against the worst."""
    all = "all"
    """Each answer against each one with a worse rank."""


REWARD_MODEL = "reward_model"
"""Name of the reward source that is the reward model of the run."""


@dataclass
class RewardConfig:
    """One reward source: a class or function that gives each sample a reward."""

    name: str = ""
    """A source of spin, or a name for your own class; the folder of its rewards has this name."""
    _target_: str | None = None
    """Import path of your own class or function, module.name; null: the source called `name`."""
    weight: float = 1.0
    """Factor of this source's rewards in the sum over all sources, finite; 0 leaves them out.

    A source with 0 is for `reward_model.refresh_by`."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class or function; any keys."""

    def __post_init__(self) -> None:
        if not self.name and self._target_ is not None:
            self.name = self._target_.rpartition(".")[2]
        require(
            isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", self.name) is not None,
            f"feedback.rewards: name={self.name}: expected letters, digits, _ and -",
        )
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        require(
            is_number and math.isfinite(self.weight),
            f"feedback.rewards: weight={self.weight} of {self.name}: expected a finite number",
        )
        require(
            isinstance(self.parameters, dict),
            f"feedback.rewards: parameters={self.parameters} of {self.name}: expected a mapping",
        )


def make_reward_config(entry: Any) -> RewardConfig:
    """Return an entry of `feedback.rewards`, which may be a name or a mapping, as a dataclass."""
    if isinstance(entry, RewardConfig):
        return entry
    if isinstance(entry, str):
        return RewardConfig(entry)
    known = [entry.name for entry in dataclasses.fields(RewardConfig)]
    if not isinstance(entry, dict):
        raise ConfigError(
            f"feedback.rewards: {entry!r}: expected a name such as exact_match, or a mapping with {', '.join(known)}"
        )
    for key in entry:
        require(key in known, f"feedback.rewards: no key {key}; expected one of {', '.join(known)}")
    return RewardConfig(**entry)


@dataclass
class FeedbackConfig:
    """Training rows: made from samples, or read from a set that has labels already."""

    rows: str | None = "truth_pairs"
    """Way in which rows are built from the samples of a prompt; null generates nothing.

    Without rewards: `truth_pairs` prefers the ground truth to each sample. With rewards:
    `wrong_truth_pairs` (to each wrong sample), `right_wrong_pairs`, `best_worst_pairs` (highest
    against lowest reward), `soft_pairs`, `ratings` (for kto), `rollouts` (for grpo, rloo and ppo).
    With a judge: `judged_pairs`, `judged_ratings` (for kto), `judged_rollouts` (for grpo, rloo and
    ppo). Or module.Class for your own."""
    rewards: list[Any] = field(default_factory=list)
    """Reward sources: names such as exact_match, or mappings with name, weight, parameters.

    A mapping with `_target_` names a class or a function of your own."""
    threshold: float = bounded(0.5, at_least=-1e9, at_most=1e9)
    """Reward above which a sample is right, at most 1e9 in size.

    It applies to the weighted sum of all sources, and to the column `score` of labelled rows."""
    path: str | None = None
    """Preference pairs or ratings to train on: a local file or a Hub id; null has none."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Rows to use, at least 1; null uses all."""
    pairs: RankedPairs = RankedPairs.best_worst
    """Pairs of a labelled row with several ranked answers: best_worst or all."""
    judged: JudgedPairsConfig = field(default_factory=JudgedPairsConfig)
    """How a judge's comparisons become pairs, with rows=judged_pairs."""
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    """How rewards are adjusted, with rows=rollouts."""

    @property
    def uses_reward_model(self) -> bool:
        """Return whether the reward model of the run is one of the sources."""
        return any(reward.name == REWARD_MODEL and reward._target_ is None for reward in self.rewards)

    def __post_init__(self) -> None:
        # A source of rows.
        require(
            self.rows is not None or self.path is not None,
            "feedback.rows and feedback.path are both null: nothing to learn from; give one of them",
        )
        check_ranges(self, "feedback.")
        # Reward sources, each with a name of its own and samples to score.
        self.rewards = [make_reward_config(entry) for entry in self.rewards]
        names = [reward.name for reward in self.rewards]
        for name in names:
            require(names.count(name) == 1, f"feedback.rewards: two sources are called {name}; give one another name")
        require(
            self.rows is not None or not names,
            f"feedback.rewards={names} with feedback.rows=null: there are no samples to score; set rewards=[] or rows",
        )


@dataclass
class PairsConfig:
    """Rules that drop self-play rows; each dropped row is counted by its reason."""

    drop_identical: bool = True
    """Drop pairs whose completions are the same tokens: they carry no signal."""
    drop_cut: bool = False
    """Drop pairs whose rejected sample was truncated at `generation.max_tokens`, and ratings of
    truncated samples."""
