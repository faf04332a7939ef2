"""Put the BOS of a tokenizer before a text once, whether or not the chat template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spin.data.chat_templates import Template, Unrenderable


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Encode a text without the BOS and EOS that a tokenizer may add.

    Names of special tokens in the text become those tokens.

    Raises:
        Unrenderable: the text contains half of a surrogate pair.
    """
    # Tokenizers read UTF-8, which has no form for such a text.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unrenderable("with text that is not Unicode (half of a surrogate pair)") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def add_opening(opening_ids: Sequence[int], ids: list[int]) -> list[int]:
    """Put the opening ids before the ids of a text, unless it begins with them."""
    opening = list(opening_ids)
    if ids[: len(opening)] == opening:
        return ids
    return [*opening, *ids]


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Encode a text that no template rendered, with the tokenizer's BOS once and no EOS."""
    return add_opening(find_opening(tokenizer), encode_plain(tokenizer, text))


def find_opening(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer puts before any text: its BOS, or nothing."""
    # Encode one letter with and without special tokens; what stands before the letter is the BOS.
    plain = encode_plain(tokenizer, "x")
    full = list(tokenizer("x", add_special_tokens=True)["input_ids"])
    for position in range(len(full)):
        if full[position : position + len(plain)] == plain:
            return full[:position]
    return []


def find_missing_opening(tokenizer: Any, template: Template, probe: str, notes: list[str]) -> tuple[int, ...]:
    """Return the tokenizer's opening ids if the template does not write them itself.

    A template that came with the tokenizer is kept as it is; a missing BOS is added to the notes.

    Args:
        probe: an exchange, rendered.
        notes: receives remarks for the user.
    """
    # The template may write the opening itself, or put it elsewhere.
    opening = find_opening(tokenizer)
    bos = tokenizer.bos_token
    begins_with_it = encode_plain(tokenizer, probe)[: len(opening)] == opening
    if begins_with_it or (bos and bos in probe):
        return ()
    if template.is_own:
        notes.append(
            f"{template.label} writes no {tokenizer.decode(opening)}, though the tokenizer puts it before plain "
            "text; prompts are as the template writes them"
        )
        return ()
    return tuple(opening)
