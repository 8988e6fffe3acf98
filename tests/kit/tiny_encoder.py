"""A sentence encoder with random weights: its cosines mean nothing, but have all their digits."""

from __future__ import annotations

from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def tiny_encoder(folder: Path, letters: str = LETTERS) -> Path:
    """Write an encoder that knows these letters to a folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig.from_dict({"vocab_size": len(vocabulary), **sizes})).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder
