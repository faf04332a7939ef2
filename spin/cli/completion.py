"""Tab completion: the script that a shell reads, and the words that may follow on a line.

The script calls `spin completion words LINE` at each tab. It offers what this module finds:
commands, config keys, values of keys that have a list of them, and files for keys that hold a text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spin.cli.commands import COMMANDS
from spin.config.key_docs import describe_keys, list_options
from spin.errors import ConfigError

SCRIPTS = {
    # Bash takes the last part of a word that holds an equals sign or a colon for a word of its own.
    "bash": """_spin() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##* }" cut=""
    if [[ $word == *[=:]* && $COMP_WORDBREAKS == *=* ]]; then cut="${word%"${word##*[=:]}"}"; fi
    mapfile -t COMPREPLY < <(command spin completion words "$line" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -o nospace -F _spin spin spin-selfplay""",
    "zsh": """(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_spin() {
    local -a found
    found=("${(@f)$(command spin completion words "$LBUFFER" 2>/dev/null)}")
    compadd -Q -S '' -a found
}
compdef _spin spin spin-selfplay""",
    "fish": """complete -c spin -f -a '(command spin completion words (commandline -cp) 2>/dev/null)'
complete -c spin-selfplay -w spin""",
}
"""Code that each shell evaluates once."""

RUN_COMMANDS = ("run", "check", "reward")
"""Commands whose words are the config of a run."""

FLAGS = ("--help", "--cfg", "-m")
"""Options of these commands."""


def complete(words: list[str]) -> str:
    """Return the script of a shell, or the possible words at the end of a command line.

    Args:
        words: ``bash``, ``zsh`` or ``fish``; or ``words`` and the line up to the cursor.

    Raises:
        ConfigError: The words are something else.
    """
    if len(words) == 2 and words[0] == "words":
        return "".join(f"{word}\n" for word in list_words(words[1]))
    if len(words) == 1 and words[0] in SCRIPTS:
        return SCRIPTS[words[0]] + "\n"
    raise ConfigError(f"spin completion {' '.join(words)}: expected one of {', '.join(SCRIPTS)}")


def list_words(line: str) -> list[str]:
    """Return the words that may stand at the end of a command line.

    Args:
        line: The line up to the cursor. Its last word is completed; it is empty after a blank.
    """
    _, *before, word = line.split(" ")
    before = [other for other in before if other]
    if not before:
        return _match(word, [f"{name} " for name in (*RUN_COMMANDS, "help", "completion", *COMMANDS)])
    command = before[0]
    if command == "completion":
        return _match(word, list(SCRIPTS))
    if command == "help":
        return _match_keys(word, [key.key for key in describe_keys()] + list(list_options()))
    key, equals, value = word.partition("=")
    if command in COMMANDS:
        arguments = [entry.name for entry in dataclasses.fields(COMMANDS[command].arguments)]
        if equals:
            return [f"{key}={path}" for path in _list_files(value)]
        return _match(word, [f"{name}=" for name in arguments])
    if command not in RUN_COMMANDS:
        return []
    if equals:
        return _list_values(key, value)
    keys = [f"{key.key}=" for key in describe_keys()] + [f"{group}=" for group in list_options()]
    return _match_keys(word, keys) + _match(word, list(FLAGS))


def _list_values(key: str, value: str) -> list[str]:
    """Return the words ``key=value`` that may follow: options, listed values, or files."""
    options = list(list_options().get(key, {}))
    kinds = set()
    for doc in describe_keys():
        if doc.key == key:
            options += doc.choices
            kinds.add(doc.kind)
    if not options and any(kind.startswith("text") for kind in kinds):
        return [f"{key}={path}" for path in _list_files(value)]
    return _match(f"{key}={value}", [f"{key}={option} " for option in options])


def _list_files(start: str) -> list[str]:
    """Return the files and folders whose path begins with a text; folders end in a slash."""
    folder, slash, name = start.rpartition("/")
    directory = Path(folder + slash).expanduser()
    if not directory.is_dir():
        return []
    found = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(name) and (name or not path.name.startswith(".")):
            ending = "/" if path.is_dir() else " "
            found.append(f"{folder}{slash}{path.name}{ending}")
    return found


def _match_keys(word: str, keys: list[str]) -> list[str]:
    """Return the keys that begin with a word, each up to its next dot."""
    found = []
    for key in _match(word, keys):
        rest = key.removeprefix(word)
        first, dot, _ = rest.partition(".")
        found.append(word + first + dot)
    return list(dict.fromkeys(found))


def _match(word: str, words: list[str]) -> list[str]:
    """Return the words that begin with a word, each once."""
    return [other for other in dict.fromkeys(words) if other.startswith(word)]
