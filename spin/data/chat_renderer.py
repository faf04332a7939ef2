"""Render turns to token ids and back; prompt and completion are cut from one rendering.

    whole text  = template(messages + completion)
    prompt text = template(messages, generation prompt)     must be the beginning of the whole text
    ids(whole)  = prompt_ids | completion_ids               up to and including the end token

Generation, training, scoring and benchmarks all use ids(prompt text). Which template is used is
decided in `chat_templates.py`; `renderer_setup.py` makes the renderer of a tokenizer. Token limits
are applied by the readers of data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spin.data.bos_token import add_opening, encode_plain
from spin.data.chat_templates import WAY_OUT, Message, Template, Tools, Unrenderable

NO_PREFIX = "whose prompt is not the beginning of its exchange in the chat template"
JOINED = "whose prompt and completion the tokenizer joins to one token"
INSIDE = "with an end token inside its completion"
LINE_STARTS = ("", "\n", ":", "x", "0")
"""Texts put before a text, one after the other, until it is encoded as in the middle of a text.

Many tokenizers put a blank before a text that stands alone, and some join a letter to the text
that follows it."""
NO_ROW = "with a token that has no row in the embedding"
MAX_SHOWN = 40
"""Longest quoted part of a rendering in a message, in characters."""


@dataclass(frozen=True)
class Exchange:
    """A prompt and one completion, cut from one rendering.

    Example: ``Exchange([1, 9, 4], [5, 2], "ab", False)``.
    """

    prompt_ids: list[int]
    """Input of generation. Shape: (prompt tokens,)."""
    completion_ids: list[int]
    """The completion up to its only stop id, not truncated. Shape: (completion tokens,)."""
    text: str
    """Text of the completion as the tokenizer decodes it, see `Renderer.text`."""
    boundary_split: bool
    """True if the ids of the whole text do not begin with `prompt_ids`, see `Renderer.exchange`."""


@dataclass(frozen=True)
class Renderer:
    """Turns to token ids, and token ids to text."""

    tokenizer: Any
    """Of the model; None while the renderer is sent to another process, see `with_tokenizer`."""
    template: Template
    opening_ids: tuple[int, ...]
    """Ids put before every text because the template does not write them: the BOS, or nothing."""
    end_id: int
    """Last id of a completion: the template's end of a turn, else the tokenizer's EOS."""
    stop_ids: tuple[int, ...]
    """Ids that end generation: `end_id`, the EOS, and those of the model's generation config."""
    tail: str
    """Text that the template writes after an assistant's words."""
    after_end_ids: tuple[int, ...] | None
    """Ids of `tail` after its end token; None if it has no end token, so that `end_id` is added."""
    end_texts: tuple[str, ...]
    """Texts of the stop tokens that were added to the vocabulary as a whole."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, shown once at launch."""
    embedding_rows: int | None = None
    """Rows of the model's embedding; None does not compare ids with it."""

    def with_tokenizer(self, tokenizer: Any) -> Renderer:
        """Return this renderer with another copy of the tokenizer.

        Actors load it from the policy's folder: not every tokenizer can be pickled.
        """
        return replace(self, tokenizer=tokenizer)

    def prompt_ids(self, messages: Sequence[Message], tools: Tools | None = None) -> list[int]:
        """Render a prompt with the generation prompt, to the same ids as in `exchange`.

        Args:
            messages: the turns before the answer.
            tools: the tools of the row, or None.

        Raises:
            Unrenderable: the template or the tokenizer refuses this row.
        """
        history = self._clean_history(messages)
        ids = self.encode(self.template.render(self.tokenizer, history, tools, generation_prompt=True))
        self._check_rows(ids)
        return ids

    def exchange(self, messages: Sequence[Message], completion: str | Message, tools: Tools | None = None) -> Exchange:
        """Render a prompt and its completion once, and cut the ids in two.

        Some tokenizers join the last characters of the prompt and the first of the completion to
        one token. The prompt ids stay as generation gets them. The rest of the text is then encoded
        on its own, and used only if both parts decode to the same text as the whole. Such an
        exchange is marked `boundary_split`.

        Args:
            messages: the turns before the completion.
            completion: the assistant's text, or its whole turn (`content`, `tool_calls`, ...). End
                tokens at its end are removed first.
            tools: the tools of the row, or None.

        Raises:
            Unrenderable: this row cannot be rendered or cut.
        """
        turn: Message = {"role": "assistant", "content": completion}
        if not isinstance(completion, str):
            turn = completion
        history = self._clean_history(messages)
        turns = [*history, self._without_end(turn)]
        # Render both texts; the prompt must be the beginning of the exchange.
        prompt_text = self.template.render(self.tokenizer, history, tools, generation_prompt=True)
        whole_text = self.template.render(self.tokenizer, turns, tools)
        if not whole_text.startswith(prompt_text):
            raise describe_difference(self.template, prompt_text, whole_text)
        left_out = self.template.find_left_out(self.tokenizer, turns, tools, whole_text)
        if left_out is not None:
            raise Unrenderable(
                f"with {left_out} that the chat template leaves out",
                f"{self.template.label} leaves out {left_out} of a row; {WAY_OUT}",
            )
        if self.after_end_ids is None:
            whole_text = self._without_tail(whole_text, len(prompt_text))
        # Cut the ids of the whole text after those of the prompt, and after the end token.
        prompt_ids = self.encode(prompt_text)
        rest_ids, boundary_split = self._cut(prompt_ids, prompt_text, whole_text)
        completion_ids = self._end(rest_ids)
        self._check_rows([*prompt_ids, *completion_ids])
        text = self.text(completion_ids)
        if not text.strip() and not turn.get("tool_calls"):
            raise Unrenderable("with an empty completion")
        return Exchange(prompt_ids, completion_ids, text, boundary_split)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer without stop ids and special tokens.

        Targets and samples are compared by this text, which both went through the tokenizer.

        Args:
            token_ids: sampled ids, or those of `exchange`. Shape: (tokens,).
        """
        kept = [token for token in token_ids if token not in self.stop_ids]
        # The clean-up would turn "it 's" into "it's" in some tokenizers.
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """Encode a rendered text; the opening ids stand before it once. Shape: (tokens,)."""
        return add_opening(self.opening_ids, encode_plain(self.tokenizer, text))

    def _check_rows(self, ids: Sequence[int]) -> None:
        """Raise Unrenderable when a token lies beyond the embedding, as an image's may."""
        if self.embedding_rows is not None and max(ids, default=0) >= self.embedding_rows:
            raise Unrenderable(NO_ROW)

    def _clean_history(self, messages: Sequence[Message]) -> list[Message]:
        """Remove end tokens from earlier answers: the template writes its own."""
        history: list[Message] = []
        for message in messages:
            if message.get("role") == "assistant":
                message = self._without_end(message)
            history.append(message)
        return history

    def _without_end(self, turn: Message) -> Message:
        """Remove all end tokens at the end of a turn's text."""
        content = turn.get("content")
        if not isinstance(content, str):
            return turn
        kept = content
        while True:
            # Blanks may stand between and after end tokens.
            stripped = kept.rstrip()
            ends = [end for end in self.end_texts if stripped.endswith(end)]
            if not ends:
                break
            kept = stripped.removesuffix(ends[0])
        if kept == content:
            return turn
        return {**turn, "content": kept}

    def _without_tail(self, whole_text: str, prompt_length: int) -> str:
        """Remove what the template writes after the answer, if that contains no end token."""
        if not whole_text.endswith(self.tail) or len(whole_text) - len(self.tail) < prompt_length:
            raise Unrenderable("whose completion does not end as other turns of the chat template")
        return whole_text.removesuffix(self.tail)

    def _encode_after(self, before: str, text: str) -> list[int] | None:
        """Encode a text as it is encoded after another; None if the two share a token."""
        head = encode_plain(self.tokenizer, before)
        both = encode_plain(self.tokenizer, before + text)
        if both[: len(head)] != head:
            return None
        return both[len(head) :]

    def _cut(self, prompt_ids: list[int], prompt_text: str, whole_text: str) -> tuple[list[int], bool]:
        """Return the ids after the prompt, and True if the cut is inside a token."""
        # Usually the ids of the prompt are the beginning of all ids.
        whole_ids = self.encode(whole_text)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return whole_ids[len(prompt_ids) :], False
        # A token reaches over the boundary: encode the rest as in the middle of a text.
        expected = self._decode(whole_ids)
        for before in LINE_STARTS:
            rest_ids = self._encode_after(before, whole_text[len(prompt_text) :])
            if rest_ids is not None and self._decode([*prompt_ids, *rest_ids]) == expected:
                return rest_ids, True
        raise Unrenderable(JOINED)

    def _decode(self, ids: Sequence[int]) -> str:
        """Decode ids to the last character, special tokens included."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _end(self, ids: list[int]) -> list[int]:
        """Cut after the end token, or add it if the template writes none."""
        # All positions of stop ids.
        stops = [position for position, token in enumerate(ids) if token in self.stop_ids]
        if self.after_end_ids is None:
            if stops:
                raise Unrenderable(INSIDE)
            return [*ids, self.end_id]
        if not stops:
            raise Unrenderable("whose completion the chat template does not end")
        # After the first one only what the template writes after every turn may follow.
        after = ids[stops[0] + 1 :]
        if tuple(after) != self.after_end_ids and self._decode(after).strip():
            raise Unrenderable(INSIDE)
        return ids[: stops[0] + 1]


def describe_difference(template: Template, prompt_text: str, whole_text: str) -> Unrenderable:
    """Return the error that shows where a prompt and its exchange differ."""
    # Length of the common beginning.
    same = 0
    shorter = min(len(prompt_text), len(whole_text))
    while same < shorter and prompt_text[same] == whole_text[same]:
        same += 1
    common = prompt_text[max(0, same - MAX_SHOWN) : same]
    prompt_next = prompt_text[same : same + MAX_SHOWN]
    whole_next = whole_text[same : same + MAX_SHOWN]
    return Unrenderable(
        NO_PREFIX,
        f"{template.label}: after {common!r} the prompt goes on with {prompt_next!r}, "
        f"the whole exchange with {whole_next!r}, so no prompt can be cut from it; "
        "set model.chat_template to a .jinja file that writes the same in both, "
        "or choose another mode of the template by model.chat_template_kwargs (such as enable_thinking)",
    )
