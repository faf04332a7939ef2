"""The one rendering of a prompt to token ids: generation, training, scoring and benchmarks all use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.errors import ConfigError

Message = dict[str, str]


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


PLAIN = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
"""Prompt text and nothing else; turns stand on lines of their own."""


_SENTINEL = "sentinel answer"


@dataclass(frozen=True)
class Renderer:
    """Messages to prompt ids, completion text to ids, and back."""

    tokenizer: Any
    template: str
    end_id: int
    """What ends a completion: the token that the template writes after an assistant's turn, or the tokenizer's end of sequence."""
    stop_ids: tuple[int, ...]
    """Every id at which generation ends: `end_id`, the tokenizer's, and those of the model's generation config."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The rendered prompt with the generation header. A template writes its own BOS, so none is added to it."""
        text = _render(self.tokenizer, self.template, messages, header=True)
        return list(self.tokenizer(text, add_special_tokens=self.template == PLAIN)["input_ids"])

    def completion_ids(self, text: str) -> list[int]:
        """The tokens of a whole completion, ended by exactly one `end_id`."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_id]

    def text(self, token_ids: Sequence[int]) -> str:
        """The words of an answer, without what ended it."""
        return self.tokenizer.decode([i for i in token_ids if i not in self.stop_ids], skip_special_tokens=True)


def _render(tokenizer: Any, template: str, messages: Sequence[Message], header: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=header
        )
    except Exception as error:  # jinja's own errors, and whatever a template raises by itself
        roles = "/".join(m["role"] for m in messages)
        raise ConfigError(
            f"the chat template cannot render turns {roles}: {error}; give another by model.chat_template (chatml, plain, or a .jinja file)"
        ) from error


def make_renderer(tokenizer: Any, template: str, generation_stop_ids: Sequence[int] = ()) -> Renderer:
    """Choose the template and find what ends a turn. Raises ConfigError where the tokenizer has no template and none is given, or nothing ends a turn."""
    if template == "auto":
        chosen = tokenizer.chat_template
        if not isinstance(chosen, str):
            raise ConfigError(
                "the tokenizer has no chat template; set model.chat_template to chatml, plain, or a .jinja file"
            )
    elif template in ("chatml", "plain"):
        chosen = {"chatml": CHATML, "plain": PLAIN}[template]
    elif Path(template).is_file():
        chosen = Path(template).read_text()
    else:
        raise ConfigError(
            f"model.chat_template={template}: no such file; expected auto, chatml, plain, or a .jinja file"
        )
    end_id = tokenizer.eos_token_id
    if chosen != PLAIN:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _SENTINEL}]
        whole = _render(tokenizer, chosen, turns, header=False)
        if _SENTINEL not in whole:
            raise ConfigError(
                "the chat template drops the assistant's words; set model.chat_template to chatml, plain, or a .jinja file"
            )
        after = tokenizer(whole.split(_SENTINEL, 1)[1].lstrip(), add_special_tokens=False)["input_ids"]
        ends = {end_id, *generation_stop_ids, *tokenizer.all_special_ids}
        end_id = after[0] if after and after[0] in ends else end_id
    if end_id is None:
        raise ConfigError(
            "neither the chat template nor the tokenizer ends a turn (no eos token): set eos_token in the model's tokenizer_config.json"
        )
    stops = {end_id, *generation_stop_ids} | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())
    return Renderer(tokenizer, chosen, end_id, tuple(sorted(stops)))
