"""A seeded Llama of a few thousand weights that can be trained and asked in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.outputs import new_folder
from trimtab.training.folders import ORIGIN, read_record, seal

CHARACTERS = "0123456789+=\n"


def tokenizer(characters: str = CHARACTERS) -> Any:
    """One token for each character; usually those that a question can hold."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", *characters]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def model(seed: int = 0, characters: str = CHARACTERS) -> Any:
    """Two layers, tied embeddings, 32 hidden units."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2 + len(characters),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def make_base(folder: Path, characters: str = CHARACTERS) -> dict[str, Any]:
    """Stands in for `export_base`."""
    import torch

    from trimtab.training import runtime

    record = read_record(folder, ORIGIN)
    if record is not None:
        return record
    with runtime.quiet(), new_folder(folder) as draft:
        model(characters=characters).to(torch.bfloat16).save_pretrained(draft)
        tokenizer(characters).save_pretrained(draft)
        return seal(draft, ORIGIN, {"model": "tiny"})
