"""Make the tiny model and the data sets of the offline recipes: letters to be put in order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from spin.data.builtin_judge import make_comparison, make_score
from spin.data.chat_templates import CHATML
from spin.errors import ConfigError

BUILTIN_MODEL = "builtin:tiny"

TRAIN = 8000
TEST = 500
HABIT = 8000
"""Rows of `letters` (train and test) and of `letters-habit`; those of `vowels` are as many."""


VOWELS = "aeiou"

CHATTER = ("Sure! ", "Of course: ", "Okay, so ", "Well, ", "Here it is: ", "Let me see. ")
"""Each begins a tenth of the rows of `letters-habit` and of `vowels-habit`.

Greedy decoding then begins with none of them; six of ten sampled answers begin with one."""

SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def write_tiny_model(folder: Path, seed: int) -> None:
    """Write a random Llama of 0.8M parameters and a byte-level tokenizer with ChatML."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    # A tokenizer of single bytes and three special tokens.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(SPECIAL + symbols)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=CHATML
    )
    # The model; its random weights depend on the seed alone.
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    # `fork_rng` leaves the random state of the process as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cache
def _words() -> tuple[str, ...]:
    """Return distinct words of 4 to 6 letters, the same on every machine."""
    rng = random.Random(20401335)
    words: dict[str, None] = {}
    while len(words) < TRAIN + TEST + HABIT:
        words["".join(rng.choices(ascii_lowercase, k=rng.randint(4, 6)))] = None
    return tuple(words)


def rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a built-in set.

    letters, vowels                train, test   clean answers
    letters-habit, vowels-habit    train         six of ten answers begin with a needless phrase
    letters-ranked                 train, test   four answers, ranked by their misplaced letters
    vowels-ranked                  train, test   four answers, ranked by their errors
    letters-judge                  train, test   comparisons of two answers, for a judge
    letters-self                   train         letters-habit, and as many questions how good an
                                                 answer is, for a policy that judges itself

    The prompts of a task are in one set only. A prompt of `vowels` has several right answers, of
    which one is given. Raises ConfigError on other names.
    """
    # Each set has words of its own.
    words = _words()
    parts = {}
    for task in ("letters", "vowels"):
        parts[task, "train"] = words[:TRAIN]
        parts[task, "test"] = words[TRAIN : TRAIN + TEST]
        parts[f"{task}-habit", "train"] = words[TRAIN + TEST :]
        for half in ("train", "test"):
            parts[f"{task}-ranked", half] = parts[task, half]
    parts["letters-judge", "train"] = parts["letters", "train"]
    parts["letters-judge", "test"] = parts["letters", "test"]
    parts["letters-self", "train"] = parts["letters-habit", "train"]
    if (name, split) not in parts:
        known = ", ".join(f"builtin:{n} ({s})" for n, s in parts)
        raise ConfigError(f"builtin:{name} has no split {split!r}; expected one of {known}")
    # The same openings in every run: the generator starts from the name of the set.
    rng = random.Random(name)
    for word in parts[name, split]:
        if name == "letters-ranked":
            yield {"prompt": f"Sort: {word}", **_rank_orders(word, rng)}
            continue
        if name == "vowels-ranked":
            yield {"prompt": f"Vowels first: {word}", **_rank_errors(word, rng)}
            continue
        if name == "letters-judge":
            yield make_comparison(word, CHATTER, rng, may_be_equal=split == "train")
            continue
        if name == "letters-self":
            yield make_score(word, CHATTER, rng)
        opening = ""
        if name.endswith(("-habit", "-self")):
            opening = rng.choice((*CHATTER, "", "", "", ""))
        if name.startswith("vowels"):
            yield {"prompt": f"Vowels first: {word}", "completion": opening + _move_vowels(word, rng)}
        else:
            yield {"prompt": f"Sort: {word}", "completion": opening + "".join(sorted(word))}


def _move_vowels(word: str, rng: random.Random) -> str:
    """Return the letters of a word, all vowels first; each part goes from a to z or from z to a."""
    parts: tuple[list[str], list[str]] = ([], [])
    for letter in word:
        parts[letter not in VOWELS].append(letter)
    letters = []
    for part in parts:
        letters += sorted(part, reverse=rng.random() < 0.5)
    return "".join(letters)


def _rank_orders(word: str, rng: random.Random) -> dict[str, list[Any]]:
    """Return up to four orders of a word's letters, each with another number of misplaced ones.

    Fewer misplaced letters have a better rank. A word of equal letters may have fewer orders.
    """
    right = sorted(word)
    by_misplaced = {0: right}
    # Enough tries that each number of misplaced letters comes up.
    for _ in range(40):
        order = rng.sample(right, len(right))
        misplaced = sum(found != expected for found, expected in zip(order, right, strict=True))
        by_misplaced.setdefault(misplaced, order)
    chosen = rng.sample(sorted(by_misplaced), min(4, len(by_misplaced)))
    return {"responses": ["".join(by_misplaced[misplaced]) for misplaced in chosen], "ranks": chosen}


def _rank_errors(word: str, rng: random.Random) -> dict[str, list[Any]]:
    """Return four answers to a prompt of `vowels`, with 0 to 3 errors, in a random order.

    Fewer errors have a better rank. An error is a vowel exchanged with a consonant, or a letter
    that the word does not have.
    """
    num_vowels = sum(letter in VOWELS for letter in word)
    ranks = rng.sample(range(4), 4)
    responses = []
    for errors in ranks:
        letters = list(_move_vowels(word, rng))
        exchanges = min(rng.randint(0, errors), num_vowels, len(word) - num_vowels)
        vowels = rng.sample(range(num_vowels), exchanges)
        consonants = rng.sample(range(num_vowels, len(word)), exchanges)
        for vowel, consonant in zip(vowels, consonants, strict=True):
            letters[vowel], letters[consonant] = letters[consonant], letters[vowel]
        # A vowel is replaced by a vowel, so that the places of the vowels stay as they are.
        for place in rng.sample(range(len(word)), errors - exchanges):
            is_vowel = letters[place] in VOWELS
            others = [letter for letter in ascii_lowercase if (letter in VOWELS) == is_vowel and letter not in word]
            letters[place] = rng.choice(others)
        responses.append("".join(letters))
    return {"responses": responses, "ranks": ranks}


def is_sorted(prompt: str, answer: str, truth: str) -> bool:
    """Return True for the right answer to a prompt of `letters`, whatever the truth is.

    A reward function: `feedback.rewards=[{_target_: spin.data.builtin.is_sorted}]`.
    """
    word = prompt.removeprefix("Sort: ")
    return answer == "".join(sorted(word))


def has_vowels_first(prompt: str, answer: str, truth: str) -> bool:
    """Return True for each right answer to a prompt of `vowels`: its letters, all vowels first.

    A reward function: `feedback.rewards=[{_target_: spin.data.builtin.has_vowels_first}]`.
    """
    word = prompt.removeprefix("Vowels first: ")
    num_vowels = sum(letter in VOWELS for letter in word)
    has_all = sorted(answer) == sorted(word)
    return has_all and all(letter in VOWELS for letter in answer[:num_vowels])
