"""The paths of a run directory, one property or method for each.

Numbers in names have leading zeros, so that names sort in the order of the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One stage of a run: the folder of one promoted policy, and the paths in it.

    `name` is ``start``, ``reward_model``, ``reward_model/000``, ``iterations/000`` or
    ``baseline/000``.
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def policy(self) -> Path:
        """The promoted checkpoint: HF safetensors and tokenizer. Opponent of the next iteration.

        With `adapter.serve=adapter`, it is a PEFT folder."""
        return self.folder / "policy"

    @property
    def adapter(self) -> Path:
        """The PEFT folder of the adapter that was merged into the policy."""
        return self.folder / "adapter"

    @property
    def critic(self) -> Path:
        """The critic that was trained with the policy, from which PPO goes on."""
        return self.folder / "critic"

    @property
    def label(self) -> str:
        """Name for messages and tables, such as ``start``, ``reward model`` or ``iteration 0``."""
        kind, _, number = self.name.partition("/")
        if not number:
            return kind.replace("_", " ")
        # Drop the plural of ``iterations``.
        return f"{kind.removesuffix('s').replace('_', ' ')} {int(number)}"

    @property
    def index(self) -> int:
        """Number of the iteration, from 0; -1 for the start and the first reward model."""
        number = self.name.partition("/")[2]
        return int(number) if number else -1

    @property
    def is_baseline(self) -> bool:
        """True for a stage of the baseline."""
        return self.name.startswith("baseline/")

    @property
    def is_reward_model(self) -> bool:
        """True for a stage that makes a reward model and no policy."""
        return self.name.partition("/")[0] == "reward_model"

    @property
    def benchmark(self) -> Path:
        """Held-out metrics with intervals, and speed: see `spin.benchmark.metrics`."""
        return self.folder / "benchmark.json"

    @property
    def lm_eval(self) -> Path:
        """Results of lm-evaluation-harness for each task."""
        return self.folder / "lm_eval.json"

    @property
    def reward_model(self) -> Path:
        """The promoted reward model: a folder for sequence classification with one label."""
        return self.folder / "model"

    @property
    def promoted(self) -> Path:
        """The folder of the weights that the stage makes: its policy, or the reward model."""
        if self.is_reward_model:
            return self.reward_model
        return self.policy

    @property
    def promoted_kind(self) -> str:
        """The kind of the unit that `promoted` is: ``policy`` or ``reward_model``."""
        if self.is_reward_model:
            return "reward_model"
        return "policy"

    @property
    def evaluation(self) -> Path:
        """Held-out figures of the reward model: see `spin.benchmark.reward_metrics`."""
        return self.folder / "evaluation.json"

    def rankings(self, kind: str) -> Path:
        """Return the file of judged samples for a reward model.

        `kind` is ``rankings`` (to train on) or ``rankings-heldout``.
        """
        return self.folder / f"{kind}.parquet"

    def answers(self, kind: str) -> Path:
        """Return the file of held-out answers of one kind.

        ``greedy`` and ``sampled`` are the answers as generated, ``judged`` is both with scores.
        """
        return self.folder / "heldout" / f"{kind}.parquet"

    def samples(self, shard: int) -> Path:
        """Return the file with the opponent's answers to the prompts of a shard."""
        return self.folder / "samples" / f"shard-{shard:05d}.parquet"

    def rewards(self, source: str, shard: int) -> Path:
        """Return the file with the rewards of one source for the samples of a shard."""
        return self.folder / "rewards" / source / f"shard-{shard:05d}.parquet"

    def judgements(self, shard: int) -> Path:
        """Return the file with a judge's comparisons of the samples of a shard."""
        return self.folder / "judgements" / f"shard-{shard:05d}.parquet"

    def pairs(self, shard: int) -> Path:
        """Return the file with the scored pairs of a shard."""
        return self.folder / "pairs" / f"shard-{shard:05d}.parquet"

    def labelled(self, name: str) -> Path:
        """Return the file of a labelled set, scored under the reference of this iteration.

        `name` is ``labelled-pairs`` or ``ratings``.
        """
        # Beside the shards of pairs: all of them are rows that the policy is trained on.
        return self.folder / "pairs" / f"{name}.parquet"

    @property
    def config(self) -> Path:
        """Config of this iteration, with the schedule applied."""
        return self.folder / "config.yaml"

    @property
    def trainer(self) -> Path:
        """Saved states of the trainer, ``step-000100`` …; deleted once the policy is promoted."""
        return self.folder / "trainer"


@dataclass(frozen=True)
class RunLayout:
    """The paths of one run."""

    root: Path

    # A resume reads the ledger; config.yaml is for people and for commands such as `spin status`.

    @property
    def config(self) -> Path:
        """Config of the first launch."""
        return self.root / "config.yaml"

    @property
    def ledger(self) -> Path:
        """List of the finished units, one JSON line each."""
        return self.root / "ledger.jsonl"

    # Logs. A resume removes the rows of steps that it repeats.

    @property
    def metrics(self) -> Path:
        """Logged metrics, one JSON line each."""
        return self.root / "metrics.jsonl"

    @property
    def tracking(self) -> Path:
        """Local files of the trackers."""
        return self.root / "tracking"

    # Guards against the loss of a user's files, and against two drivers in one directory.

    @property
    def launching(self) -> Path:
        """Empty file that proves that the files beside it come from a launch.

        If that launch is refused, the next one deletes these files. Deleted once the run begins.
        """
        return self.root / "launching"

    @property
    def lock(self) -> Path:
        """File that the driver holds locked; its content is the driver's process id."""
        return self.root / "lock"

    # State of a run for `spin status` and for people. A resume does not read these.

    @property
    def native_log(self) -> Path:
        """Output of native libraries in the driver, such as Ray's; empty if all went well."""
        return self.root / "native.log"

    @property
    def ray_logs(self) -> Path:
        """Ray's logs, if the last session ended with an error; deleted once the run is complete."""
        return self.root / "ray_logs"

    @property
    def now(self) -> Path:
        """Progress of the stage that is running, for `spin status`."""
        return self.root / "now.json"

    @property
    def error(self) -> Path:
        """The last error of the run, deleted once the run is complete."""
        return self.root / "error.json"

    # Inputs that are written once, before the first stage.

    @property
    def model(self) -> Path:
        """The built-in model, if the config names it; any other model stays in its own folder."""
        return self.root / "model"

    @property
    def judge_replies(self) -> Path:
        """Replies of an endpoint that judges, one JSON line each, so that none is paid twice."""
        return self.root / "judge_replies.jsonl"

    def prompts(self, name: str) -> Path:
        """Return the file of a prepared set.

        Sets are train, heldout, warmup, labelled-pairs, ratings, rankings and rankings-heldout.
        """
        return self.root / "prompts" / f"{name}.parquet"

    @property
    def start(self) -> Stage:
        """Stage of the starting policy: the given model, or the result of the warm-up."""
        return Stage(self.root, "start")

    @property
    def reward_model(self) -> Stage:
        """Stage of the reward model that the run trains before iteration 0."""
        return Stage(self.root, "reward_model")

    def refreshed_reward_model(self, index: int) -> Stage:
        """Return the stage of the reward model that iteration `index` trains again."""
        return Stage(self.root, f"reward_model/{index:03d}")

    def iteration(self, index: int) -> Stage:
        """Return the stage of a self-play iteration."""
        return Stage(self.root, f"iterations/{index:03d}")

    def baseline(self, index: int) -> Stage:
        """Return the stage of the baseline that has as many training steps as iteration `index`."""
        return Stage(self.root, f"baseline/{index:03d}")

    @property
    def table(self) -> Path:
        """Table with one row for each policy: metrics with intervals, and speed."""
        return self.root / "benchmark.csv"

    @property
    def best(self) -> Path:
        """Link to the best policy of the run so far."""
        return self.root / "policy_best"
