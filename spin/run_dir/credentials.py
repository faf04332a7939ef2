"""Passwords in URLs of run directories: used for the connection, never shown and never stored.

`hide_passwords` takes them out of the words of the command line before anything reads these, and
keeps them in the memory of the process. `add_password` puts them back where a connection is made.
"""

from __future__ import annotations

import re

_URL = re.compile(r"(?P<scheme>[\w+.-]+://)(?P<user>[^\s/@:]*):(?P<password>[^\s/@]*)@(?P<host>[^\s/\]'\",]*)")
"""Beginning of a URL with a password: ``ftp://user:password@host``."""

_WITH_PASSWORD: dict[str, str] = {}
"""Beginnings of URLs as the user gave them, by the same without the password."""


def hide_passwords(text: str) -> str:
    """Return a text without the passwords of the URLs in it; they are kept for `add_password`.

    ``run_dir=ftp://me:secret@host/run`` becomes ``run_dir=ftp://me@host/run``. The user stays: it
    tells two run directories of one host apart.
    """
    return _URL.sub(_keep_password, text)


def _keep_password(found: re.Match[str]) -> str:
    shown = f"{found['scheme']}{found['user']}@{found['host']}"
    _WITH_PASSWORD[shown] = found[0]
    return shown


def add_password(url: str) -> str:
    """Return a URL with the password that the user gave for its host, if there was one."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    start = f"{scheme}{mark}{host}"
    return _WITH_PASSWORD.get(start, start) + slash + path
