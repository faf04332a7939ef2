"""Every path of a run directory, one function a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """The folder of the warm start (``start``), of one iteration (``iterations/000``) or of one of the baseline (``baseline/000``), and what stands in it."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def policy(self) -> Path:
        """The promoted checkpoint: HF safetensors and tokenizer; the opponent of the next iteration."""
        return self.folder / "policy"

    @property
    def label(self) -> str:
        """``start``, ``iteration 0``, ``baseline 0``: what a person reads."""
        kind, _, number = self.name.partition("/")
        return f"{kind.removesuffix('s')} {int(number)}" if number else kind

    @property
    def index(self) -> int:
        """Number of the iteration, from 0; -1 for the start."""
        number = self.name.partition("/")[2]
        return int(number) if number else -1

    @property
    def is_baseline(self) -> bool:
        """True for a stage of the baseline."""
        return self.name.startswith("baseline/")

    @property
    def benchmark(self) -> Path:
        """Held-out figures, their intervals and speed: see `spin.benchmark.metrics`."""
        return self.folder / "benchmark.json"

    @property
    def lm_eval(self) -> Path:
        """What lm-evaluation-harness found, task by task."""
        return self.folder / "lm_eval.json"

    def answers(self, kind: str) -> Path:
        """Held-out answers: ``greedy`` and ``sampled`` as they were generated, ``judged`` beside the truth."""
        return self.folder / "heldout" / f"{kind}.parquet"

    def samples(self, shard: int) -> Path:
        return self.folder / "samples" / f"shard-{shard:05d}.parquet"

    def pairs(self, shard: int) -> Path:
        return self.folder / "pairs" / f"shard-{shard:05d}.parquet"

    def labelled(self, name: str) -> Path:
        """``labelled-pairs`` or ``ratings``, scored under this iteration's reference."""
        return self.folder / "pairs" / f"{name}.parquet"

    @property
    def config(self) -> Path:
        """The config of this iteration, its schedule applied."""
        return self.folder / "config.yaml"

    @property
    def trainer(self) -> Path:
        """Training states, ``step-000100`` and so on; gone once the stage is promoted."""
        return self.folder / "trainer"


@dataclass(frozen=True)
class RunLayout:
    """Where everything of one run lies."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tracking(self) -> Path:
        """The trackers' local records."""
        return self.root / "tracking"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def native_log(self) -> Path:
        """What the native libraries of the driver have to say; empty unless something went wrong."""
        return self.root / "native.log"

    @property
    def now(self) -> Path:
        """How far the stage is that runs, for `spin status`."""
        return self.root / "now.json"

    @property
    def error(self) -> Path:
        """What the run last failed with; gone once it is complete."""
        return self.root / "error.json"

    @property
    def model(self) -> Path:
        """The built-in model, where the config asks for one; any other model stays where it is."""
        return self.root / "model"

    def prompts(self, name: str) -> Path:
        """A prepared set: ``train``, ``heldout``, ``warmup``, ``labelled-pairs`` or ``ratings``."""
        return self.root / "prompts" / f"{name}.parquet"

    @property
    def start(self) -> Stage:
        """The starting policy: the model given, or the outcome of the warm-up."""
        return Stage(self.root, "start")

    def iteration(self, index: int) -> Stage:
        return Stage(self.root, f"iterations/{index:03d}")

    def baseline(self, index: int) -> Stage:
        """The baseline's policy after as many stages as iteration `index` had: a chain of its own from the same start."""
        return Stage(self.root, f"baseline/{index:03d}")

    @property
    def table(self) -> Path:
        """One row a policy: every figure, its interval, speed."""
        return self.root / "benchmark.csv"

    @property
    def best(self) -> Path:
        """A link to the best policy of the run so far."""
        return self.root / "policy_best"
