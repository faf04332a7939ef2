"""Questions to a judge: Jinja templates that show a prompt and one or two answers as data.

A template has two blocks. `question` is the user's turn, `ending` begins the judge's reply, so that
the next token is a label. The texts stand between marks that occur in none of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from spin.errors import ConfigError
from spin.feedback.judge_labels import LabelProbabilities
from spin.run_dir.files import expand_home

SHIPPED = Path(__file__).parent / "templates"
"""Folder of the templates of spin."""

CUT = " […cut]"
"""What follows a text that was cut."""

CONTROL_TEXTS = re.compile(
    r"<[|｜]|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+)\]"
    r"|</?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|start_of_image|extra_id_\d+|unused\d+)>"
)
"""What chat templates begin and end turns with. A tokenizer would read it as a special token, and
the tokenizer of an endpoint is not known."""


@dataclass(frozen=True)
class Question:
    """A question to a judge."""

    text: str
    """The user's turn."""
    ending: str
    """The beginning of the judge's reply; a label comes next."""

    @property
    def with_ending(self) -> str:
        """The user's turn with the ending, for `judge.prefill=false`."""
        return f"{self.text}\n\n{self.ending}"


AskJudge = Callable[[Sequence[Question]], list[LabelProbabilities]]
"""Asks a judge; returns the probabilities of the labels for each question."""


@dataclass(frozen=True)
class JudgeTemplate:
    """A template with its labels and its limit on the length of a text."""

    source: str
    labels: tuple[str, ...]
    max_chars: int
    num_answers: int = 2
    """Answers that a question shows: 2, or 1 if each answer gets a score."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all that a question depends on, besides the texts."""
        return hashlib.sha256(repr((self.source, self.labels, self.max_chars)).encode()).hexdigest()

    def ask(self, prompt: str, answers: Sequence[str], reversed_scale: bool = False) -> Question:
        """Return the question which of two answers is better, or how good an answer is.

        Args:
            prompt: Text of the prompt.
            answers: The answers, in the order in which they are shown.
            reversed_scale: Show the labels from the last to the first; the last shown is the best.
        """
        prompt = cut_text(break_control_texts(prompt), self.max_chars)
        shown = [cut_text(break_control_texts(answer), self.max_chars) for answer in answers]
        mark = make_mark([prompt, *shown])
        labels = self.labels
        if reversed_scale:
            labels = labels[::-1]
        variables = {"prompt": prompt, "answers": shown, "labels": labels, "mark": mark}
        return Question(self._render("question", variables), self._render("ending", variables))

    def _render(self, block: str, variables: dict[str, Any]) -> str:
        """Return the text of one block."""
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        template = environment.from_string(self.source)
        return "".join(template.blocks[block](template.new_context(variables)))


def load_template(template: str, labels: Sequence[str], max_chars: int, num_answers: int = 2) -> JudgeTemplate:
    """Read a template and try it.

    Args:
        template: `judge.template`, the name of a shipped template or a file.
        labels: `judge.labels`, or the numbers of `judge.scale` from the worst to the best.
        max_chars: `judge.max_answer_chars`.
        num_answers: Answers that a question shows.

    Raises:
        ConfigError: There is no such template, or it lacks a block or a text.
    """
    path = SHIPPED / f"{template}.jinja"
    if template.endswith(".jinja"):
        path = expand_home(template)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.jinja")))
        raise ConfigError(f"judge.template={template}: no such template; expected {shipped}, or a .jinja file")
    made = JudgeTemplate(path.read_text(encoding="utf-8"), tuple(labels), max_chars, num_answers)

    # Texts that no template contains, to see that all of them are shown.
    texts = ["sentinel prompt", "sentinel first", "sentinel second"][: 1 + num_answers]
    try:
        question = made.ask(texts[0], texts[1:])
    except KeyError as error:
        raise ConfigError(
            f"judge.template={template} has no block {error}; expected the blocks question and ending"
        ) from error
    except (jinja2.TemplateError, TypeError) as error:
        raise ConfigError(f"judge.template={template} cannot be rendered: {error}") from error
    for text in texts:
        if text not in question.text:
            shown = ", ".join(["prompt", "answers[0]", "answers[1]"][: 1 + num_answers])
            raise ConfigError(f"judge.template={template}: block question does not show {shown}; add what is missing")
    if not question.ending.strip():
        raise ConfigError(
            f"judge.template={template}: block ending is empty; expected a text that a label follows, "
            "such as Better answer: ["
        )
    return made


def break_control_texts(text: str) -> str:
    """Return a text in which a blank breaks everything that could end the turn it is shown in."""
    # After the first character: "< |im_end|>".
    return CONTROL_TEXTS.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def cut_text(text: str, max_chars: int) -> str:
    """Return a text of at most `max_chars` characters, with a mark if it was cut."""
    if len(text) <= max_chars:
        return text
    return text[: max_chars - len(CUT)] + CUT


def make_mark(texts: Sequence[str]) -> str:
    """Return eight hex digits that occur in none of the texts and depend on them alone.

    The mark is a hash of the texts: an answer cannot contain a mark that depends on the answer.
    """
    number = 0
    while True:
        mark = hashlib.sha256(repr((number, list(texts))).encode()).hexdigest()[:8]
        if not any(mark in text for text in texts):
            return mark
        number += 1
