"""A tiny real model on disk, for the tests."""

from pathlib import Path

import torch

from spin.models.policy import Policy, policy_digest
from spin.run_dir.files import write_folder_atomically


def write_model(folder: Path, seed: int, positions: int = 128, tied: bool = True) -> Policy:
    """Write a random Llama and a byte tokenizer; id 0 ends a sequence. Embeddings are tied.

    vLLM leaves the head of tied embeddings stale when it reloads weights.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(["<end>", *symbols])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=None,
    )

    def write(path: Path) -> None:
        LlamaForCausalLM(config).save_pretrained(path)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path)

    write_folder_atomically(folder, write)
    return Policy(str(folder), policy_digest(folder))
