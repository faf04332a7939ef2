"""Hooks of mkdocs: links out of docs/ become the path of the file.

On the site the files of the repository do not exist; in an editor or a code browser they do.
"""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)")
"""A link to a file above docs/: its text and its path in the repository."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page in which each link out of docs/ is its text and the path of the file."""
    return OUTSIDE.sub(show_path, markdown)


def show_path(link: re.Match[str]) -> str:
    """Return the text of one link with the path behind it, or the path alone where both agree."""
    text, path = link.groups()
    if text.strip("`") == path:
        return f"`{path}`"
    return f"{text} (`{path}`)"
