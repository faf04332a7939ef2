"""Check that the files which a config names exist, before anything heavy is imported.

torch, Ray and transformers take some ten seconds of CPU to import; a misspelt path is told at once.
"""

from __future__ import annotations

from pathlib import Path

from spin.config.run import RunConfig
from spin.data.file_readers import check_exists
from spin.models.policy import find_local_model
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout


def check_input_paths(iteration_configs: list[RunConfig]) -> None:
    """Raise ConfigError when the model or a data set of any iteration does not exist.

    A run that has begun is not checked: it has its own copy of the data.
    """
    run_dir = iteration_configs[0].run_dir
    if "://" in run_dir or "data" in Ledger(RunLayout(Path(run_dir)).ledger, read_only=True):
        return
    for config in iteration_configs:
        if not config.model.path.startswith("builtin:"):
            find_local_model(config.model.path, needs_weights=config.cluster.assume is None)
        if config.reward_model.path is not None:
            find_local_model(config.reward_model.path, "reward_model.path")
        paths = [config.data.path, config.data.eval_path, config.feedback.path, config.data.ptx.path]
        paths += [config.reward_model.data_path, config.reward_model.eval_path]
        if config.warmup.enabled:
            paths.append(config.warmup.path)
        for path in paths:
            if path is not None:
                check_exists(path)
