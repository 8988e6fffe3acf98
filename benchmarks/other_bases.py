"""Bases of other kinds: small text encoders like SigLIP 2's and Hugging Face's, and one that knows English.

    python benchmarks/other_bases.py siglip2|roberta|minilm [--paraphrases FILE] [--epochs N] [--learning-rates …]

PARACLIP_DATA names a folder with `flickr8k` and `sts/sick`. A text encoder is trained on Flickr8k's captions against
the built-in base's image encoder, by the image~caption loss of its kind (the sigmoid for `siglip2`), and exported to
ROOT/KIND/base. It has four layers, 256 wide, and a tokenizer of these captions, all untrained; `minilm` is
all-MiniLM-L6-v2, which knows English from a billion pairs of sentences. If FILE is given, a table of `caption`,
`paraphrase_1` and `paraphrase_2`, the base is tuned on it by the default recipes at the default rates of such a base,
or at others with `contrast` alone. Prints what was chosen, for the control too, and the verdict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import torch
from record import arguments, data_folder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig

import paraclip
from paraclip_core.clip.built_in import PREPROCESS, built_in_clip
from paraclip_core.clip.export import CONFIG, save_release
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.options import ModelOptions
from paraclip_core.paraphrase.sentence_encoder import packaged_folder
from paraclip_core.settings import parse_settings

WIDTH, LAYERS, WORDS, TOKENS = 256, 4, 8192, 32
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_tokenizer(captions: Iterable[str], folder: Path) -> Path:
    """Byte-level BPE of these captions."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL.values())
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(SPECIAL[name], tokenizer.token_to_id(SPECIAL[name])) for name in ("bos_token", "eos_token")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    return folder


def text_config(kind: str, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """`text_cfg` of a kind; at a small size if it is untrained."""
    hugging_face: dict[str, Any] = {
        "hf_tokenizer_name": str(tokenizer),
        "hf_pooler_type": "mean_pooler",
        "context_length": TOKENS,
    }
    if kind == "minilm":
        return hugging_face | {"hf_model_name": str(packaged_folder()), "hf_proj_type": "linear"}
    if kind == "siglip2":
        named: Any = open_clip.get_model_config("ViT-B-16-SigLIP2")
        return named["text_cfg"] | {
            "context_length": TOKENS,
            "vocab_size": WORDS,
            "hf_tokenizer_name": str(tokenizer),
            "width": WIDTH,
            "heads": WIDTH // 64,
            "layers": LAYERS,
        }
    RobertaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=TOKENS + 16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ).save_pretrained(folder / "hf")
    return hugging_face | {"hf_model_name": str(folder / "hf"), "hf_model_pretrained": False}


def write_untrained(kind: str, captions: Iterable[str], folder: Path) -> None:
    """A model of the built-in base's image encoder and a text encoder that has seen no image."""
    image = built_in_clip(ModelOptions(embed_dim=1280))
    release = folder / "untrained"
    release.mkdir(parents=True, exist_ok=True)
    if kind == "minilm":
        tokenizer = release
        AutoTokenizer.from_pretrained(packaged_folder()).save_pretrained(release)
    else:
        tokenizer = write_tokenizer(captions, release)
    config: dict[str, Any] = {
        "embed_dim": 1280,
        "vision_cfg": image.model_cfg["vision_cfg"],
        "text_cfg": text_config(kind, tokenizer, folder),
    }
    if kind == "siglip2":
        config |= {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
    if kind == "minilm":
        # As the built-in base's: frozen features that are close together need more than CLIP's 1/0.07.
        config["init_logit_scale"] = math.log(50)
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config)
    model.visual.load_state_dict(image.visual.state_dict())
    # Its weights come with the base from here on.
    config["text_cfg"] |= {} if kind == "siglip2" else {"hf_model_pretrained": False}
    config["custom_text"] = True
    # The tokenizer is loaded from a folder with a configuration.
    (release / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    save_release(ClipModel(model.eval(), config, dict(PREPROCESS), f"local-dir:{release}"), release, "")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("kind", choices=("siglip2", "roberta", "minilm"))
    parser.add_argument("--paraphrases", type=Path)
    parser.add_argument("--epochs", type=float, default=10.0, help="passes over the paraphrases (default: 10)")
    parser.add_argument("--learning-rates", type=float, nargs="+", help="tried with the recipe contrast alone")
    parser.add_argument("--root", type=Path, default=Path("runs/other-bases"))
    options = parser.parse_args()
    flickr, sts = data_folder("flickr8k"), data_folder("sts")
    if flickr is None or sts is None:
        raise SystemExit("set PARACLIP_DATA to a folder with flickr8k and sts/sick")
    folder = options.root.resolve() / options.kind
    captions = [
        text["raw"]
        for image in json.loads((flickr / "dataset_flickr8k.json").read_text())["images"]
        if image["split"] == "train"
        for text in image["sentences"]
    ]
    if not (folder / "untrained" / "README.md").exists():
        write_untrained(options.kind, captions, folder)
    shared = {
        "data": {
            "root": str(flickr.resolve()),
            "max_words": 30,
            "sources": [{"path": "dataset_flickr8k.json", "format": "karpathy", "images": "images_128.tar"}],
        },
        "run": {"root": str(options.root)},
    }
    retrieval = {"name": "retrieval", "kind": "retrieval"}
    rate, epochs = (5e-4, 4) if options.kind == "minilm" else (2e-3, 3)
    trained = shared | {
        "name": f"{options.kind}-base",
        # Other captions of the same image are paraphrases enough to have a row for each caption.
        "paraphrase": {"engine": "file", "file": {"path": "dataset_flickr8k.json"}},
        "model": {"base": f"local-dir:{folder / 'untrained'}"},
        "finetune": {
            "recipe": "own",
            "texts": "captions",
            "weights": dict.fromkeys(("image_paraphrase_2", "caption_paraphrase_1", "paraphrase_1_paraphrase_2"), 0.0)
            | {"image_caption": 1.0},
            "learning_rate": rate,
            "epochs": epochs,
            "batch_size": 512,
            "alpha": {"grid": [1.0]},
        },
        "evaluate": {"queries": None, "benchmarks": [retrieval]},
    }
    figures = paraclip.run(parse_settings(trained)).summary["models"]["tuned"]["retrieval"]
    print(f"{options.kind} base: recall@10 {figures['text_to_image_recall@10']:.1f}")
    if not (folder / "base").exists():
        paraclip.export(f"{options.kind}-base", folder / "base", root=options.root)
    if options.paraphrases is None:
        return
    rates = options.learning_rates
    tried = {"recipe": "contrast", "learning_rate": rates} if rates else {}
    tuned = shared | {
        "name": options.kind,
        "paraphrase": {"engine": "file", "file": {"path": str(options.paraphrases.resolve())}},
        "model": {"base": f"local-dir:{folder / 'base'}"},
        "finetune": {"epochs": options.epochs} | tried,
        "evaluate": {
            "queries": None,
            "control": True,
            "gate": {
                "metric": "query_pairs/corrected_ao@10",
                "max_drop": {"query_pairs/margin": 1.0, "retrieval/text_to_image_recall@10": 1.0},
            },
            "benchmarks": [{"name": "sick", "kind": "query_pairs", "path": str(sts.resolve() / "sick")}, retrieval],
        },
    }
    result = paraclip.run(parse_settings(tuned))
    print(result.title)
    for stage in ("finetune", "control"):
        folder = options.root / "artifacts" / stage / result.summary["fingerprints"][stage]
        choice = json.loads((folder / "candidates.json").read_text())
        print(stage, json.dumps({name: value for name, value in choice.items() if name != "candidates"}))


if __name__ == "__main__":
    main()
