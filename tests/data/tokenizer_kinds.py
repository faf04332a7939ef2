"""The kinds of tokenizers in use, trained on the spot on a few lines of text.

Every tokenizer has the markers of every template as whole tokens.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "[CLS]", "[SEP]"]
"""Ids 0 to 8 in every tokenizer."""
BOS, EOS, IM_START, IM_END, THINK, END_THINK, CLS, SEP = range(1, 9)
BLANK = "\u2581"
CORPUS = [
    "Capital of France? Paris. The capital of France is Paris.",
    "Capital of Spain? Madrid. The sky is blue. The sky is black.",
    "user\nassistant\nsystem\ntool\nHello\n\nHello\n",
    "<|user|>\n<|assistant|>\n [INST] [/INST] <<SYS>> Be brief. Name a red fruit. A cherry.",
    "  two blanks,\n\n- a list\n- of two\n\n42 is 6 times 7 = 42.",
] * 4


def _same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer."""

    name: str
    build: Callable[[], Tokenizer]
    normalise: Callable[[str], str] = _same
    """Effect of encoding and decoding on a text, written by hand."""
    adds: tuple[str, ...] = ()
    """Tokens put before plain text."""
    adds_end: str | None = None
    """Token put after plain text."""


def _finish(tokenizer: Tokenizer, trainer: Any, adds: tuple[str, ...] = (), adds_end: str | None = None) -> Tokenizer:
    """Train on the corpus, then set the tokens around plain text."""
    tokenizer.train_from_iterator(CORPUS, trainer)
    around = [*adds, "$A"]
    if adds_end is not None:
        around.append(adds_end)
    if len(around) > 1:
        used = [token for token in around if token != "$A"]
        pieces = [(token, tokenizer.token_to_id(token)) for token in used]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(around), special_tokens=pieces)
    return tokenizer


def _added() -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in SPECIAL]


def _byte_trainer() -> Any:
    return trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=_added(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def byte_level(
    prefix: bool = False, nfc: bool = False, adds: tuple[str, ...] = (), adds_end: str | None = None
) -> Tokenizer:
    """Make a tokenizer like those of GPT-2, Llama 3 and Qwen: bytes, merged inside words."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, _byte_trainer(), adds, adds_end)


def byte_level_lines() -> Tokenizer:
    """Make one with the pattern of Llama 3 and Qwen: two line breaks are one token."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, _byte_trainer())


def _words() -> Any:
    """Cut at blanks and line breaks: SentencePiece trains on words but encodes whole texts."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(BLANK, "merged_with_next")]
    )


def spm_legacy(adds: tuple[str, ...] = ()) -> Tokenizer:
    """Make Llama 2's and Mistral's as converted: a blank before text between special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = _words()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=_added(), show_progress=False)
    tokenizer = _finish(tokenizer, trainer, adds)
    tokenizer.pre_tokenizer = None
    return tokenizer


def spm_metaspace(model: str, scheme: str, adds: tuple[str, ...] = (), joins_line_breaks: bool = False) -> Tokenizer:
    """Make those of T5, Gemma and newer Llama conversions. `scheme`: where a blank is put."""
    split = scheme != "never"
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer = Tokenizer(models.Unigram() if model == "unigram" else models.BPE(unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    if joins_line_breaks:
        tokenizer.pre_tokenizer = metaspace
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never"), _words()])
    if model == "unigram":
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=_added(), unk_token="<unk>", show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=_added(), show_progress=False)
    tokenizer = _finish(tokenizer, trainer, adds)
    tokenizer.pre_tokenizer = metaspace
    return tokenizer


def sentencepiece_library(model_type: str) -> Tokenizer:
    """Convert a model that the SentencePiece library trained, as transformers does for Llama 2."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if line),
        model_writer=out, model_type=model_type, vocab_size=360, hard_vocab_limit=False, byte_fallback=True,
        add_dummy_prefix=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=SPECIAL[3:], minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    if model_type == "unigram":
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    else:
        vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
        tokenizer = Tokenizer(models.BPE(vocab, _merges(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(_added())
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE model, found from its scores as in transformers."""
    rank = {piece: index for index, (piece, _) in enumerate(pieces)}
    merges: list[tuple[int, tuple[str, str]]] = []
    for piece, index in rank.items():
        if piece in SPECIAL or piece.startswith("<0x"):
            continue
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in rank and right in rank:
                merges.append((index, (left, right)))
    return [merge for _, merge in sorted(merges)]


def wordpiece() -> Tokenizer:
    """Make BERT's: lower case, words and their pieces; blanks and line breaks are lost."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=_added(), show_progress=False)
    return _finish(tokenizer, trainer, ("[CLS]",), "[SEP]")


def _words_of_bert(text: str) -> str:
    """Write in lower case, with every punctuation mark a word and one blank between words."""
    spaced = "".join(f" {c} " if not (c.isalnum() or c.isspace()) else c for c in text.lower())
    return " ".join(spaced.split())


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


KINDS = [
    Kind("byte_level", byte_level),
    Kind("byte_level_prefix_space", lambda: byte_level(prefix=True)),
    Kind("byte_level_joins_line_breaks", byte_level_lines),
    Kind("nfc", lambda: byte_level(nfc=True), _nfc),
    Kind("adds_bos", lambda: byte_level(adds=("<s>",)), adds=("<s>",)),
    Kind("adds_eos", lambda: byte_level(adds_end="</s>"), adds_end="</s>"),
    Kind("adds_both", lambda: byte_level(adds=("<s>",), adds_end="</s>"), adds=("<s>",), adds_end="</s>"),
    Kind("spm_bpe_legacy", spm_legacy),
    Kind("spm_bpe_legacy_adds_bos", lambda: spm_legacy(("<s>",)), adds=("<s>",)),
    Kind("spm_bpe_first", lambda: spm_metaspace("bpe", "first", ("<s>",)), adds=("<s>",)),
    Kind("spm_bpe_never", lambda: spm_metaspace("bpe", "never", ("<s>",)), adds=("<s>",)),
    Kind("spm_bpe_joins_line_breaks", lambda: spm_metaspace("bpe", "first", joins_line_breaks=True)),
    Kind("spm_unigram_always", lambda: spm_metaspace("unigram", "always")),
    Kind("spm_unigram_first", lambda: spm_metaspace("unigram", "first")),
    Kind("spm_unigram_never", lambda: spm_metaspace("unigram", "never")),
    Kind("sentencepiece_bpe", lambda: sentencepiece_library("bpe"), adds=("<s>",)),
    Kind("sentencepiece_unigram", lambda: sentencepiece_library("unigram"), adds=("<s>",)),
    Kind("wordpiece", wordpiece, _words_of_bert, adds=("[CLS]",), adds_end="[SEP]"),
]


@cache
def _raw(name: str) -> str:
    """Return a kind as JSON; trained once per process."""
    kind = next(kind for kind in KINDS if kind.name == name)
    state = json.loads(kind.build().to_str())
    for token in state["added_tokens"]:
        if "think" in token["content"]:
            token["special"] = False  # as in Qwen 3: decoding keeps it
    return json.dumps(state)


def tokenizer_of(name: str, template: str | None = None, eos: str = "</s>", bos: str | None = "<s>") -> Any:
    """Return a new tokenizer of a kind, with a chat template of its own or without."""
    tokenizer = Tokenizer.from_str(_raw(name))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="<unk>", chat_template=template
    )


def without_markers() -> Any:
    """Return a tokenizer of single bytes that knows `</s>` (id 0) and no marker of ChatML."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(["</s>", *symbols])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
