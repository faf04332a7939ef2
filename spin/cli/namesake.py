"""Find another project of the name `spin` in the environment.

The package index has a developer tool that is called `spin`, too. Its package folder and its
command have the names of ours, so that pip overwrites files of one project with those of the other.
"""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "spin-selfplay"
"""The name under which pip knows this project."""


def find_namesake() -> str | None:
    """Return one line about the other project and the way out; None if it is not installed."""
    try:
        other = metadata.distribution("spin")
    except metadata.PackageNotFoundError:
        return None
    # Up to version 0.2 this project was installed under the name of the other one.
    if "Self-play" in (other.metadata["Summary"] or ""):
        return None
    return (
        f"warning: another project named spin (version {other.version}) is installed in this environment and shares "
        f"the folder spin/ and the command spin with {DISTRIBUTION}. Keep one: pip uninstall spin {DISTRIBUTION}, "
        f"then pip install {DISTRIBUTION}"
    )
