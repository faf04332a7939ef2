"""spin: self-play iterative finetuning of language models, hands off."""

__version__ = "0.2.0"
