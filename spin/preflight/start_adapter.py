"""Find the adapter that a run starts from.

It is `adapter.path` for the model `model.path`, or `model.path` is itself an adapter folder, which
names its base. The sum of the two is written into the run directory: engines, and training without
adapters, start from it.
"""

from __future__ import annotations

from spin.config.run import RunConfig
from spin.errors import ConfigError
from spin.models.adapter_folder import AdapterFolder, check_folder, find_base
from spin.models.policy import find_model, is_adapter_folder
from spin.run_dir.files import expand_home


def find_start_adapter(config: RunConfig) -> AdapterFolder | None:
    """Return the adapter that a run starts from; None if it starts from a model.

    Raises:
        ConfigError: The adapter or its base does not exist.
    """
    path = config.model.path
    if path.startswith("builtin:"):
        return None
    folder = find_model(path, needs_weights=config.cluster.assume is None)
    if not is_adapter_folder(folder):
        if config.adapter.path is None:
            return None
        return AdapterFolder(check_folder(expand_home(config.adapter.path), "adapter.path"), folder)
    if config.adapter.path is not None:
        raise ConfigError(
            f"model.path={path} is an adapter, and adapter.path={config.adapter.path} is another one; give one of them"
        )
    return AdapterFolder(check_folder(folder, "model.path"), find_base(folder, path))
