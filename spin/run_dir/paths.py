"""The paths of a run directory, one property or method for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """The folder of one promoted policy, and the paths in it.

    `name` is ``start``, ``iterations/000`` or ``baseline/000``.
    """

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
        """Name for messages and tables: ``start``, ``iteration 0`` or ``baseline 0``."""
        kind, _, number = self.name.partition("/")
        if not number:
            return kind
        return f"{kind.removesuffix('s')} {int(number)}"

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
        """Held-out metrics, their intervals and speed: see `spin.benchmark.metrics`."""
        return self.folder / "benchmark.json"

    @property
    def lm_eval(self) -> Path:
        """Results of lm-evaluation-harness for each task."""
        return self.folder / "lm_eval.json"

    def answers(self, kind: str) -> Path:
        """Return held-out answers: ``greedy`` and ``sampled`` as generated, ``judged`` with scores."""
        return self.folder / "heldout" / f"{kind}.parquet"

    def samples(self, shard: int) -> Path:
        """Return the opponent's answers to the prompts of a shard."""
        return self.folder / "samples" / f"shard-{shard:05d}.parquet"

    def rewards(self, source: str, shard: int) -> Path:
        """Return the rewards that one source gives the samples of a shard."""
        return self.folder / "rewards" / source / f"shard-{shard:05d}.parquet"

    def pairs(self, shard: int) -> Path:
        """Return the scored pairs of a shard."""
        return self.folder / "pairs" / f"shard-{shard:05d}.parquet"

    def labelled(self, name: str) -> Path:
        """Return ``labelled-pairs`` or ``ratings``, scored under this iteration's reference."""
        return self.folder / "pairs" / f"{name}.parquet"

    @property
    def config(self) -> Path:
        """The config of this iteration, with the schedule applied."""
        return self.folder / "config.yaml"

    @property
    def trainer(self) -> Path:
        """Training states, ``step-000100`` and so on; deleted once the policy is promoted."""
        return self.folder / "trainer"


@dataclass(frozen=True)
class RunLayout:
    """The paths of one run."""

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
        """Local files of the trackers."""
        return self.root / "tracking"

    @property
    def launching(self) -> Path:
        """Mark of a launch that may still be refused; deleted once the run has begun."""
        return self.root / "launching"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def native_log(self) -> Path:
        """Output of native libraries in the driver; empty unless something went wrong."""
        return self.root / "native.log"

    @property
    def now(self) -> Path:
        """Progress of the stage that runs, for `spin status`."""
        return self.root / "now.json"

    @property
    def error(self) -> Path:
        """The last error of the run, deleted once the run is complete."""
        return self.root / "error.json"

    @property
    def model(self) -> Path:
        """The built-in model, if the config names it; any other model stays in its own folder."""
        return self.root / "model"

    def prompts(self, name: str) -> Path:
        """Return a prepared set: train, heldout, warmup, labelled-pairs or ratings."""
        return self.root / "prompts" / f"{name}.parquet"

    @property
    def start(self) -> Stage:
        """The starting policy: the given model, or the warm-up's result."""
        return Stage(self.root, "start")

    def iteration(self, index: int) -> Stage:
        """Return the stage of a self-play iteration."""
        return Stage(self.root, f"iterations/{index:03d}")

    def baseline(self, index: int) -> Stage:
        """Return the baseline's stage with as many training steps as iteration `index`."""
        return Stage(self.root, f"baseline/{index:03d}")

    @property
    def table(self) -> Path:
        """One row for each policy: metrics, their intervals, speed."""
        return self.root / "benchmark.csv"

    @property
    def best(self) -> Path:
        """Link to the best policy of the run so far."""
        return self.root / "policy_best"
