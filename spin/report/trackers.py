"""What goes into metrics.jsonl, sent to TensorBoard, Weights & Biases or MLflow as well, through accelerate's trackers. Only the driver does it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spin.config.run import RunConfig, flatten, to_plain
from spin.errors import ConfigError


def check_trackers(names: list[str]) -> None:
    """Raise ConfigError unless the package of each is installed."""
    from accelerate.tracking import get_available_trackers

    available = {str(name) for name in get_available_trackers()} if names else set()
    for name in names:
        if name not in available:
            raise ConfigError(f"tracking={name}: its package is not installed; pip install {name}, or leave it out")


class Trackers:
    """All trackers of a run, on one axis: optimizer steps since the run began, those of the warm start and of the baseline included."""

    def __init__(self, config: RunConfig, folder: Path, rows: Iterable[dict[str, Any]]) -> None:
        """`folder`: where local records go. `rows`: those of metrics.jsonl that are kept from earlier sessions; they are not sent again."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # the trackers ask it who is the main process; the driver takes no GPU
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(config.run_dir).name
        identity = hashlib.sha256(str(Path(config.run_dir).resolve()).encode()).hexdigest()[:16]
        arguments: dict[str, tuple[str, dict[str, Any]]] = {
            "tensorboard": ("tensorboard", {"logging_dir": str(folder)}),
            "wandb": ("spin", {"dir": str(folder), "name": name, "id": identity, "resume": "allow"}),
            "mlflow": ("spin", {"logging_dir": str(folder / "mlflow"), "run_name": name}),
        }
        self._trackers = []
        for kind in config.tracking:
            title, options = arguments[kind]
            tracker = LOGGER_TYPE_TO_CLASS[kind](title, **options)
            tracker.start()
            tracker.store_init_configuration(
                {
                    key: value if isinstance(value, int | float | str) else str(value)
                    for key, value in flatten(to_plain(config)).items()
                }
            )
            self._trackers.append(tracker)
        self._steps: dict[str, int] = {}
        for row in rows:
            self._advance(row)

    def log(self, row: dict[str, Any]) -> None:
        """Send the numbers of one row, as ``train/loss``, ``benchmark/nll`` and so on; those of the warm start and of the baseline under their own name."""
        self._advance(row)
        stage = row["unit"].split("/")[0]
        prefix = (
            row["kind"]
            if stage == "iterations" or row["kind"] == "benchmark" and stage == "start"
            else f"{stage}/{row['kind']}"
        )
        hidden = ("time", "step", "steps")
        numbers = {
            key: value
            for key, value in flatten(row).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in hidden
        }
        for tracker in self._trackers:
            tracker.log({f"{prefix}/{key}": value for key, value in numbers.items()}, step=sum(self._steps.values()))

    def finish(self) -> None:
        """Write what is buffered; the records are whole then."""
        for tracker in self._trackers:
            tracker.finish()

    def _advance(self, row: dict[str, Any]) -> None:
        if "step" in row:
            self._steps[row["unit"]] = row["step"]
