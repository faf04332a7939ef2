"""Write docs/configuration_reference.md from the docstrings of the config's dataclasses.

Run `python scripts/config_reference.py` after a change of a config key; a test fails when the page
is out of date.
"""

from __future__ import annotations

from pathlib import Path

from spin.cli.help_text import STAGES
from spin.config.key_docs import GroupDoc, describe_groups, list_options

PAGE = Path(__file__).parents[1] / "docs" / "configuration_reference.md"

HEAD = """# Configuration reference

<!-- Written by scripts/config_reference.py from the docstrings in spin/config; do not edit. -->

Every key of `spin run`, `spin check` and `spin reward`, with its default. `spin help KEY` prints the same in the
terminal. [Configuration](configuration.md) explains how the keys go together.
"""


def write_reference() -> str:
    """Return the page as Markdown."""
    parts = [HEAD, "## Chosen by name\n"]
    for group, options in list_options().items():
        rows = [f"| `{group}={name}` | {escape(text)} |" for name, text in options.items()]
        parts.append("\n".join([f"| `{group}` | |", "| --- | --- |", *rows]) + "\n")
    for group in describe_groups():
        parts.append(describe_group(group))
    return "\n".join(parts)


def describe_group(group: GroupDoc) -> str:
    """Return the section of a group, with a table of its keys."""
    title = f"`{group.name}`"
    if not group.name:
        title = "Without a group"
    lines = [f"## {title}", "", " ".join(group.text.split()), ""]
    keys = group.keys
    # The texts of a stage are those of `training`; only other defaults are of interest.
    if group.name in STAGES:
        lines[2] = "The keys of `training`; these defaults differ:"
        usual = {key.key: key.default for other in describe_groups() for key in other.keys}
        keys = [key for key in keys if key.default != usual["training." + key.key.rpartition(".")[2]]]
    if not keys:
        return "\n".join(lines)
    lines += ["| key | default | meaning |", "| --- | --- | --- |"]
    for key in keys:
        text = escape(" ".join(key.text.split()))
        choices = [f"`{name}`: {escape(about)}" for name, about in key.choices.items() if about]
        lines.append(f"| `{key.key}` | `{key.default}` | {'<br>'.join([text, *choices])} |")
    return "\n".join([*lines, ""])


def escape(text: str) -> str:
    """Return a text for a cell of a table: no column separators, and double backticks as single."""
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(write_reference())
    print(f"wrote {PAGE}")
