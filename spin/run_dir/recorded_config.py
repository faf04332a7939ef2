"""Record and read the current config of a run, and refuse files of another version of spin."""

from __future__ import annotations

from spin import __version__
from spin.config.load import load_config
from spin.config.run import Baseline, RunConfig
from spin.errors import ConfigError
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout


def record_session(ledger: Ledger, config: RunConfig) -> None:
    """Record the current values of the settings that a resume may change, for `read_config`."""
    session = {
        "iterations": config.iterations,
        "benchmark": config.benchmark.enabled,
        "baseline": config.baseline is not None,
    }
    # Do not add an equal line at every resume.
    known = ledger.get("session") or {}
    if known != {"unit": "session", **session}:
        ledger.append("session", **session)


def check_version(layout: RunLayout, ledger: Ledger) -> None:
    """Raise ConfigError when a run's files were written by another version of spin.

    Versions whose first two numbers are equal read each other's files.
    """
    record = ledger.get("run")
    if record is None:
        return
    # Version 0.1 did not record its number.
    written_by = record.get("version", "0.1")
    if written_by.split(".")[:2] != __version__.split(".")[:2]:
        raise ConfigError(
            f"{layout.root} was written by another version of spin ({written_by}, this is {__version__}); "
            "use that version, or choose another run_dir"
        )


def read_config(layout: RunLayout, ledger: Ledger) -> RunConfig:
    """Return the current config of a run: that of its first launch, with the changes of later ones.

    Raises:
        ConfigError: The run was written by another version of spin.
    """
    # First the version: the config of another one may have keys that this one does not know.
    check_version(layout, ledger)
    config = load_config(layout.config)

    # config.yaml is not written again, so the changes are read from the ledger. Lines of an older
    # session may lack a key.
    session = ledger.get("session") or {}
    config.iterations = session.get("iterations", config.iterations)
    config.benchmark.enabled = session.get("benchmark", config.benchmark.enabled)
    if "baseline" in session:
        config.baseline = Baseline.sft if session["baseline"] else None
    return config
