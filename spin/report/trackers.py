"""Send the rows of metrics.jsonl to TensorBoard, Weights & Biases or MLflow, through accelerate.

Only the driver sends them; workers have no trackers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spin.config.run import RunConfig, flatten, to_plain
from spin.errors import ConfigError
from spin.run_dir.credentials import hide_passwords
from spin.run_dir.remote import is_url

NOT_METRICS = ("time", "step", "steps")
"""Numbers of a row that are not sent."""


def check_trackers(names: list[str]) -> None:
    """Raise ConfigError unless the package of every tracker is installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in available:
            raise ConfigError(f"tracking={name}: its package is not installed; pip install {name}, or leave it out")


class Trackers:
    """All trackers of a run. Their axis counts all optimizer steps since the run began.

    The steps of the warm start and of the baseline count too.
    """

    def __init__(self, config: RunConfig, folder: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Start the trackers.

        Args:
            folder: for records on the local disk.
            rows: what earlier sessions logged; the steps are counted, the rows are not sent again.
        """
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # The trackers ask for the main process; the driver must not take a GPU for it.
        PartialState(cpu=True)
        folder.mkdir(parents=True, exist_ok=True)

        # Project and options of each kind. With the same id, a resumed run continues its curves.
        name = Path(config.run_dir).name
        place = hide_passwords(config.run_dir)
        if not is_url(place):
            place = str(Path(place).resolve())
        identity = hashlib.sha256(place.encode()).hexdigest()[:16]
        arguments: dict[str, tuple[str, dict[str, Any]]] = {
            "tensorboard": ("tensorboard", {"logging_dir": str(folder)}),
            "wandb": ("spin", {"dir": str(folder), "name": name, "id": identity, "resume": "allow"}),
            "mlflow": ("spin", {"logging_dir": str(folder / "mlflow"), "run_name": name}),
        }

        # The trackers take numbers and texts only.
        settings = flatten(to_plain(config))
        for key, value in settings.items():
            if not isinstance(value, int | float | str):
                settings[key] = str(value)

        self._trackers = []
        for kind in config.tracking:
            project, options = arguments[kind]
            tracker = LOGGER_TYPE_TO_CLASS[kind](project, **options)
            tracker.start()
            tracker.store_init_configuration(dict(settings))
            self._trackers.append(tracker)

        # By unit, the number of its last optimizer step.
        self._steps: dict[str, int] = {}
        for row in rows:
            self._count_step(row)

    def log(self, row: dict[str, Any]) -> None:
        """Send the numbers of one row under names such as ``train/loss`` and ``benchmark/nll``.

        Those of the warm start and of the baseline begin with ``start/`` and ``baseline/``. The
        benchmark of the start does not: it is the first point of the iterations' curve.
        """
        self._count_step(row)
        # The names of the curves.
        stage = row["unit"].split("/")[0]
        prefix = row["kind"]
        is_first_point = stage == "start" and prefix == "benchmark"
        if stage != "iterations" and not is_first_point:
            prefix = f"{stage}/{prefix}"
        # Numbers only. A bool is an int in Python, but no metric.
        numbers = {}
        for key, value in flatten(row).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and key not in NOT_METRICS:
                numbers[f"{prefix}/{key}"] = value
        step = sum(self._steps.values())
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Write what the trackers have buffered and close them."""
        for tracker in self._trackers:
            tracker.finish()

    def _count_step(self, row: dict[str, Any]) -> None:
        if "step" in row:
            self._steps[row["unit"]] = row["step"]
