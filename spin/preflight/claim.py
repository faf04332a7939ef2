"""Claim a run directory: write its config, refuse a run with another config."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from spin import __version__
from spin.config.run import RunConfig, fingerprint, fingerprint_of_defaults, to_plain
from spin.errors import ConfigError
from spin.run_dir.files import write_text
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.plan import plan_units
from spin.run_dir.recorded_config import check_version
from spin.run_dir.remote import is_url
from spin.run_dir.store import RunStore, open_store

CLAIM_NAMES = frozenset(
    {"lock", "launching", "launching.tmp", "config.yaml", "config.yaml.tmp", "ledger.jsonl", "ledger.jsonl.part"}
)
"""Names that `claim` itself writes into an empty run directory."""

LAUNCH_NAMES = (
    *("model", "model.tmp", "prompts", "metrics.jsonl", "metrics.jsonl.tmp"),
    *("error.json", "now.json", "now.json.tmp", "config.yaml", "config.yaml.tmp"),
)
"""Names that a launch writes before the run begins, in the order in which they are deleted."""


def open_run_store(config: RunConfig) -> RunStore:
    """Return the store of the run directory.

    On a cluster that is joined, its path is absolute, since actors have other working folders.
    """
    if config.cluster.address is None or is_url(config.run_dir):
        return open_store(config.run_dir)
    return open_store(str(Path(config.run_dir).absolute()))


def claim(config: RunConfig, iteration_configs: list[RunConfig], store: RunStore) -> Ledger:
    """Write the config of a new run, or check that the run directory holds this run.

    The files of a refused launch are deleted first: it has made nothing that depends on its config.

    Returns:
        The ledger of the run.

    Raises:
        ConfigError: The run directory holds something else; keys that changed are named.
    """
    layout = RunLayout(store.root)
    ledger = Ledger(layout.ledger, store)
    if is_refused_launch(layout, store, ledger):
        for name in LAUNCH_NAMES:
            store.delete(layout.root / name)
        # The ledger last: if this is interrupted, the next launch does it again.
        store.delete(layout.ledger)
        ledger = Ledger(layout.ledger, store)
    check_claim(config, iteration_configs, store, ledger)

    # The mark comes first and goes last: it proves that a launch made the files beside it.
    if "data" in ledger:
        end_launch(layout, store)
    if "run" not in ledger:
        write_text(layout.launching, "")
        store.publish(layout.launching)
    if "run" not in ledger or not layout.config.exists():
        write_config(config, store)
    if "run" not in ledger:
        ledger.append("run", version=__version__, keys=fingerprint(config))
    return ledger


def is_refused_launch(layout: RunLayout, store: RunStore, ledger: Ledger) -> bool:
    """Return True when the run directory holds the files of a refused launch, and nothing else."""
    if not layout.launching.exists() or "run" not in ledger or "data" in ledger:
        return False
    return set(store.list_names()) <= {*CLAIM_NAMES, *LAUNCH_NAMES}


def end_launch(layout: RunLayout, store: RunStore) -> None:
    """Delete the mark of a launch: from here on its files belong to a run."""
    if layout.launching.exists():
        store.delete(layout.launching)


def check_claim(config: RunConfig, iteration_configs: list[RunConfig], store: RunStore, ledger: Ledger) -> None:
    """Raise ConfigError when the run directory holds something else, or a run with another config.

    The message names the keys that changed.
    """
    # Nothing, a launch that was interrupted, or files of somebody else.
    layout = RunLayout(store.root)
    known = ledger.get("run")
    others = sorted(set(store.list_names()) - CLAIM_NAMES)
    found = ", ".join(others[:3])
    if known is None:
        if others:
            raise ConfigError(
                f"run_dir={config.run_dir} is no run (no ledger) and not empty ({found}); choose another, or empty it"
            )
        return
    if "data" not in ledger and others:
        raise ConfigError(
            f"run_dir={config.run_dir}: ledger.jsonl has lost lines: it names no prepared data, but {found} are there; "
            "restore it from a copy, or choose another run_dir"
        )

    # The config of the run, then those of the iterations that have begun.
    check_version(layout, ledger)
    changed = list_changes(config, known["keys"])
    if not changed:
        for unit in plan_units(layout, config, iteration_configs, {}):
            begun = ledger.get(unit.name)
            if unit.kind == "config" and begun is not None:
                changes = list_changes(iteration_configs[unit.stage.index], begun["keys"])
                changed += [f"{unit.stage.label}: {change}" for change in changes]
    if changed:
        raise ConfigError(
            f"run_dir={layout.root} holds a run with another config: {', '.join(changed)}; "
            "put these back to continue it, or choose another run_dir"
        )


def write_config(config: RunConfig, store: RunStore) -> None:
    """Write config.yaml: the resolved config, for people and for the commands that read a run."""
    path = RunLayout(store.root).config
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
    store.publish(path)


def list_changes(config: RunConfig, before: dict[str, str]) -> list[str]:
    """Return the keys whose values differ from the recorded ones, with both values.

    An earlier version of spin did not record keys that it did not know; they had their defaults.
    """
    now = fingerprint(config)
    defaults = fingerprint_of_defaults(config)
    changes = []
    for key in sorted(now | before):
        old = before.get(key, defaults.get(key))
        if now.get(key) != old:
            changes.append(f"{key}={now.get(key)} (was {old})")
    return changes
