"""Choose the chat template of a run, and render turns to text with it.

Token ids are in `chat_renderer.py`. Every error of a template leaves this module as `Unrenderable`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin.errors import ConfigError
from spin.run_dir.files import expand_home

Message = dict[str, Any]
"""One turn as the template gets it: `role`, `content`, and keys such as `tool_calls`."""
Tools = Sequence[dict[str, Any]]
"""The tools that the model may call, as JSON schemas."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
PLAIN = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if loop.revindex > (1 if add_generation_prompt else 2) %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""The text alone. Each turn of the prompt is a line; the completion follows the last directly."""

WAY_OUT = "set model.chat_template to another template (chatml, plain, or a .jinja file)"
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip
"""Variables of a template that the caller or transformers sets."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that hold the thoughts before an answer."""
MAX_REASON = 120
"""Longest quoted error of a template, in characters."""


class Unrenderable(ConfigError):
    """One row that cannot be rendered, while others of the same data set can.

    A reader of a data set drops the row and counts it by `reason`. Elsewhere it is a
    ConfigError with its full message.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        """Keep the short reason and the full message.

        Args:
            reason: completes "3 rows ...", as in "3 rows with an empty completion".
            message: one line for the user; None makes one from the reason.
        """
        super().__init__(message or f"a row {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Template:
    """A chat template with the variables that it is given."""

    source: str
    """The Jinja text."""
    label: str
    """Its name in messages."""
    is_own: bool
    """True if it came with the tokenizer; it then writes a BOS wherever the model expects one."""
    kwargs: Mapping[str, Any]
    """`model.chat_template_kwargs`; the same for the prompt and for the exchange."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on the choice."""

    def render(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        tools: Tools | None = None,
        generation_prompt: bool = False,
        unfinished: bool = False,
    ) -> str:
        """Render turns to text.

        Args:
            tokenizer: of the model; its special tokens are variables of the template.
            messages: the turns, which reach the template unchanged.
            tools: the tools of the row, or None.
            generation_prompt: add the beginning of the assistant's next turn.
            unfinished: leave out what ends the last turn.

        Raises:
            Unrenderable: the template refuses these turns.
        """
        # Jinja raises errors of its own, and a template may raise any error.
        try:
            text = tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools or []) or None,
                chat_template=self.source,
                add_generation_prompt=generation_prompt,
                continue_final_message=unfinished,
                tokenize=False,
                **self.kwargs,
            )
        except Exception as error:  # a template can raise anything
            cause = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
            roles = "/".join(str(message.get("role")) for message in messages)
            raise Unrenderable(
                f"that the chat template refuses ({cause})",
                f"{self.label} cannot render turns {roles}: {cause}; {WAY_OUT}",
            ) from error
        return str(text)

    def find_left_out(self, tokenizer: Any, messages: Sequence[Message], tools: Tools | None, text: str) -> str | None:
        """Return the name of a part that the template leaves out; None if there is none.

        A part is left out if the text stays the same without it.

        Args:
            tokenizer: of the model.
            messages: all turns of the exchange.
            tools: the tools of the row, or None.
            text: the exchange, rendered without a generation prompt.
        """
        # Tools of the row, and calls of tools in its turns.
        if tools and self._gives(tokenizer, messages, None, text):
            return "tools"
        if any(message.get("tool_calls") for message in messages):
            without_calls = []
            for message in messages:
                without_calls.append({key: value for key, value in message.items() if key != "tool_calls"})
            if self._gives(tokenizer, without_calls, tools, text):
                return "tool calls"
        # Thoughts of earlier answers may be left out on purpose, not those of the last.
        for key in REASONING_KEYS:
            if messages[-1].get(key):
                answer = {name: value for name, value in messages[-1].items() if name != key}
                if self._gives(tokenizer, [*messages[:-1], answer], tools, text):
                    return f"the {key} of an answer"
        # Turns of roles that some templates skip.
        roles = {str(message.get("role")) for message in messages}
        for role in sorted(roles - {"user", "assistant"}):
            # A template may write by itself what the row says too, such as its default system turn.
            contents = [message.get("content") for message in messages if message.get("role") == role]
            if all(str(content or "").strip() in text for content in contents):
                continue
            others = [message for message in messages if message.get("role") != role]
            if self._gives(tokenizer, others, tools, text):
                return f"a {role} turn"
        return None

    def _gives(self, tokenizer: Any, messages: Sequence[Message], tools: Tools | None, text: str) -> bool:
        """Return True if these turns give the same text; turns that are refused do not."""
        try:
            return self.render(tokenizer, messages, tools) == text
        except Unrenderable:
            return False


def choose_template(tokenizer: Any, setting: str, kwargs: Mapping[str, Any]) -> Template:
    """Return the template that `model.chat_template` names.

    Args:
        tokenizer: the model's, from transformers.
        setting: ``auto`` (the tokenizer's own), ``chatml``, ``plain``, the name of one of several
            templates of the tokenizer, or the path of a .jinja file.
        kwargs: variables for the template, such as ``enable_thinking``.

    Raises:
        ConfigError: there is no such template, or it reads no variable of a name in `kwargs`.
    """
    notes: list[str] = []
    is_own = False
    named = list_named_templates(tokenizer.chat_template)
    label = f"model.chat_template={setting}"
    if setting == "auto":
        source = take_default(tokenizer.chat_template, named, notes)
        label = "the tokenizer's chat template"
        is_own = True
    elif setting == "chatml":
        source = CHATML
        notes += check_chatml_markers(tokenizer)
    elif setting == "plain":
        source = PLAIN
    elif setting in named:
        source = named[setting]
        label = f"the tokenizer's chat template '{setting}'"
        is_own = True
    else:
        source = read_template(setting, named)
    # Llama 3.1 writes the date of the day unless it is given.
    if "strftime_now" in source:
        notes.append(
            f"{label} may write today's date, so prompts rendered on another day differ; "
            "if it reads a variable for the date, set that in model.chat_template_kwargs"
        )
    # A variable that no template reads is a typing error of the user.
    check_kwargs(kwargs, source, label)
    return Template(source, label, is_own, dict(kwargs), tuple(notes))


def list_named_templates(templates: Any) -> dict[str, str]:
    """Return the text of each of a tokenizer's named templates; a single template has no name."""
    if isinstance(templates, Mapping):
        return {str(name): text for name, text in templates.items()}
    named: dict[str, str] = {}
    if isinstance(templates, list | tuple):
        for entry in templates:
            named[str(entry["name"])] = entry["template"]
    return named


def take_default(templates: Any, named: dict[str, str], notes: list[str]) -> str:
    """Return the tokenizer's template; of several the default, which is added to the notes."""
    if isinstance(templates, str):
        return templates
    if not named:
        raise ConfigError(
            "the tokenizer has no chat template; set model.chat_template to chatml, plain, or a .jinja file"
        )
    # One that is named without need, or the default of several.
    names = ", ".join(sorted(named))
    if len(named) == 1:
        return named[names]
    if "default" not in named:
        raise ConfigError(
            "the tokenizer has several chat templates and none is the default; "
            f"set model.chat_template to one of {names}"
        )
    notes.append(
        f"the tokenizer has several chat templates ({names}); 'default' is used; model.chat_template=NAME takes another"
    )
    return named["default"]


def check_chatml_markers(tokenizer: Any) -> list[str]:
    """Return a note if this tokenizer cuts a marker of ChatML into pieces; else nothing."""
    # A marker must be one known token, or the model has never seen it as one.
    broken: list[str] = []
    for marker in CHATML_MARKERS:
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            broken.append(f"{marker} is {len(ids)} tokens")
    if not broken:
        return []
    return [
        f"model.chat_template=chatml: {' and '.join(broken)} in this tokenizer, so the model has not learned them "
        "as markers; plain, or a .jinja file with the model's own markers, may suit it better"
    ]


def read_template(setting: str, named: dict[str, str]) -> str:
    """Read a template file. Raises ConfigError if it cannot be read."""
    path = expand_home(setting)
    if not path.is_file():
        known = ", ".join(["auto", "chatml", "plain", *sorted(named)])
        raise ConfigError(f"model.chat_template={setting}: no such file; expected {known}, or a .jinja file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.chat_template={setting} cannot be read: {error}; expected a text file in UTF-8"
        ) from error


def check_kwargs(kwargs: Mapping[str, Any], source: str, label: str) -> None:
    """Raise ConfigError for variables that the template does not read or spin sets itself."""
    # A name in the source may also stand in a text, so this finds most typing errors, not all.
    for name in kwargs:
        if name in RESERVED:
            raise ConfigError(f"model.chat_template_kwargs.{name} is set by spin itself; remove it")
        if not re.search(rf"\b{re.escape(str(name))}\b", source):
            raise ConfigError(
                f"model.chat_template_kwargs.{name}: {label} reads no such variable; remove it or correct its name"
            )
