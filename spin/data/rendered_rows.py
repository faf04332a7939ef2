"""Read and render the rows of a data set, and count the rows that are dropped by reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

from spin.config.groups import RankedPairs, Turn
from spin.data.chat_renderer import Exchange, Renderer
from spin.data.chat_templates import PLAIN, Unrenderable
from spin.data.conversations import read_conversation
from spin.data.file_readers import PlacedRow, load_rows
from spin.data.formats import Format, detect_format
from spin.data.row_context import CONTEXT_COLUMNS, Conversation, find_unread_column
from spin.data.row_report import RowReport
from spin.data.turns import Unusable, ends_in_header
from spin.errors import ConfigError

FORMAT_ROWS = 100
"""Rows by which the format of a set is detected: some may lack columns."""


@dataclass(frozen=True)
class RenderedRow:
    """One usable row."""

    place: str
    """File and line."""
    conversation: Conversation
    exchanges: list[Exchange]
    """Of the prompt with each of its answers; not cut to a limit."""


def open_rows(
    path: str, split: str, labelled: bool = False, columns: Mapping[str, str | None] | None = None
) -> tuple[Format | None, Iterator[PlacedRow]]:
    """Return the format of a data set and its rows; no format if it has no rows.

    Args:
        path: of the set.
        split: of a Hub data set.
        labelled: True if a column `score` rates the answer; else it is not read.
        columns: for names that spin reads, the column of the set that has this name from then on;
            None for none.

    Raises:
        ConfigError: the set cannot be read, or its columns fit no format.
    """
    # The first rows are read twice: for their columns, and then as rows of the set.
    rows = load_rows(path, split)
    if columns:
        rows = _rename_columns(rows, columns)
    first = list(islice(rows, FORMAT_ROWS))
    if not first:
        return None, iter(())
    row_format = detect_format([row for _, row in first], first[0][0], labelled)
    return row_format, chain(first, rows)


def _rename_columns(rows: Iterator[PlacedRow], columns: Mapping[str, str | None]) -> Iterator[PlacedRow]:
    """Yield rows whose columns have the names that spin reads."""
    for place, row in rows:
        renamed = {name: value for name, value in row.items() if name not in columns}
        for name, source in columns.items():
            if source is not None and row.get(source) is not None:
                renamed.pop(source, None)
                renamed[name] = row[source]
        yield place, renamed


def render_rows(
    report: RowReport,
    row_format: Format,
    rows: Iterator[PlacedRow],
    renderer: Renderer,
    max_prompt: int,
    turn: Turn = Turn.last,
    pairs: RankedPairs | None = None,
) -> Iterator[RenderedRow]:
    """Yield the rows that can be rendered, and count the others in `report`.

    Args:
        report: counts.
        row_format: from `open_rows`, as are the rows.
        rows: places and columns.
        renderer: of the run.
        max_prompt: longest prompt, in tokens.
        turn: assistant turn that is the answer, where a column holds a whole conversation.
        pairs: which of several answers are rendered; None renders only the best answer of a row.

    Raises:
        ConfigError: a column carries context that is not read.
    """
    report.format = row_format.name
    for place, row in rows:
        report.read += 1
        report.ignored.update(list_ignored(row, row_format))
        try:
            # Read the turns; context that would be left out refuses the whole set.
            conversation = read_conversation(row, row_format, turn, pairs or RankedPairs.best_worst)
            unread = find_unread_column(row, row_format, conversation)
            if unread is not None:
                raise ConfigError(
                    f"{place}: column {unread} is not read of rows of {row_format.name}, and its text is not in the "
                    "conversation; put it into the prompt, or remove the column"
                )
            # Text that is already rendered has a template of its own; `plain` adds nothing.
            if renderer.template.source != PLAIN and ends_in_header(conversation.prompt):
                raise Unusable("with a prompt that ends in the header of an answer (it is rendered already)")
            # Render the prompt with each answer.
            exchanges = []
            completions = conversation.completions
            if pairs is None:
                completions = completions[:1]
            for completion in completions:
                exchanges.append(renderer.exchange(conversation.prompt, completion, conversation.tools))
            if len(exchanges[0].prompt_ids) > max_prompt:
                raise Unusable(f"with a prompt over {max_prompt} tokens")
        except Unrenderable as error:
            report.drop(error.reason, place)
        except Unusable as error:
            report.drop(str(error), place)
        else:
            yield RenderedRow(place, conversation, exchanges)


def list_ignored(row: dict[str, object], row_format: Format) -> list[str]:
    """Return the columns of a row that have a value and are not read."""
    # Columns of context are not ignored: they are read, or the set is refused.
    ignored = []
    for name, value in row.items():
        if value is not None and name not in row_format.columns and name.lower() not in CONTEXT_COLUMNS:
            ignored.append(name)
    return ignored
