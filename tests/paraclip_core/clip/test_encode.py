"""Encoding without padding equals every kind of model's own, forward and backward; tokens, chunks, images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.factory import get_model_config

from paraclip_core.clip import encode
from paraclip_core.clip.encode import (
    encode_images,
    encode_ragged,
    encode_texts,
    model_tokenizer,
    pad_token,
    pick_precision,
    text_encoder,
    tokenize,
)
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, freeze_image_encoder, image_encoder_hash, preprocess_hash
from paraclip_core.clip.ragged import Ragged
from paraclip_core.errors import ModelError
from tests.kit.drawn_clip import drawn
from tests.kit.encoders import KINDS

TEXTS = 7
Tiny = Callable[..., ClipModel]


def _own(clip: ClipModel, texts: list[str]) -> torch.Tensor:
    """What open_clip itself makes of the texts, padded to the whole context."""
    output = clip.model.encode_text(model_tokenizer(clip)(texts))  # type: ignore[operator]
    return F.normalize(output[0] if isinstance(output, tuple) else output, dim=-1)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def clip(kind: str, encoders: Any, tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return encoders.model_of(kind, tmp_path_factory.mktemp(kind))


def test_forward_equals_the_models_own(clip: ClipModel, kind: str, encoders: Any) -> None:
    assert text_encoder(clip).padded == encoders.KINDS[kind][0]
    tokens = tokenize(clip, encoders.TEXTS)
    assert tokens.values.dtype == np.uint16 and int(tokens.lengths.min()) < clip.context_length
    with torch.no_grad():
        expected = _own(clip, encoders.TEXTS)
        for chunk_tokens in (60, 100_000):
            features = encode_ragged(clip, tokens, chunk_tokens=chunk_tokens)
            assert features.shape == (TEXTS, 32) and (features - expected).abs().max() <= 1e-5
    # The texts differ from each other by far more than that.
    assert (expected[0] - expected[1]).abs().max() > 1e-2 and (expected[0] - expected[6]).abs().max() > 1e-3


def test_gradients_equal_the_models_own(clip: ClipModel, kind: str, encoders: Any) -> None:
    target = torch.randn(TEXTS, 32, generator=torch.Generator().manual_seed(3))
    gradients = []
    for encoded in (_own, lambda clip, texts: encode_ragged(clip, tokenize(clip, texts), chunk_tokens=60)):
        clip.model.zero_grad(set_to_none=True)
        (encoded(clip, encoders.TEXTS) * target).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in clip.model.named_parameters() if p.grad is not None})
    clip.model.zero_grad(set_to_none=True)
    expected, ragged = gradients
    assert expected.keys() == ragged.keys() and len(ragged) > 20
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        error = float((ragged[name] - gradient).norm())
        # A key's bias moves all scores of a query alike, so its gradient is nothing but rounding.
        nothing = max(float(gradient.norm()), float(ragged[name].norm())) < 1e-5 * largest
        assert nothing or error <= 1e-4 * float(gradient.norm()), name


def test_a_release_loads_back_without_network(clip: ClipModel, kind: str, encoders: Any, tmp_path: Path) -> None:
    save_release(clip, tmp_path / "a", "card")
    again = load_clip(f"local-dir:{tmp_path / 'a'}")
    assert type(again.model) is type(clip.model) and not again.model.training
    hashes = [(image_encoder_hash(each), preprocess_hash(each)) for each in (again, clip)]
    assert hashes[0] == hashes[1]
    np.testing.assert_array_equal(encode_texts(again, encoders.TEXTS), encode_texts(clip, encoders.TEXTS))
    save_release(again, tmp_path / "b", "card")
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path.name


def test_only_what_the_loss_sees_is_trained(clip: ClipModel, encoders: Any) -> None:
    freeze_image_encoder(clip)
    trained = {name for name, parameter in clip.model.named_parameters() if parameter.requires_grad}
    clip.model.zero_grad(set_to_none=True)
    clip.model.train()
    scale = clip.model.get_parameter("logit_scale").exp()
    (scale * encode_ragged(clip, tokenize(clip, encoders.TEXTS))).sum().backward()
    clip.model.eval()
    reached = {name for name, parameter in clip.model.named_parameters() if parameter.grad is not None}
    assert reached == trained and ("logit_scale" in trained) != clip.sigmoid


def test_dropout_of_a_hugging_face_encoder_stays_off(encoders: Any, tmp_path: Path) -> None:
    save_release(encoders.model_of("roberta", tmp_path), tmp_path / "release", "card")
    clip = load_clip(str(tmp_path / "release"))
    tokens = tokenize(clip, encoders.TEXTS)
    clip.model.train()
    with torch.no_grad():
        assert torch.equal(encode_ragged(clip, tokens), encode_ragged(clip, tokens))
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in clip.model.modules())


def test_padding_and_types_of_tokens(encoders: Any, tmp_path: Path) -> None:
    for kind, pad in (("clip", 0), ("roberta", 1), ("bert", 0), ("siglip", 1), ("coca", 0)):
        folder = tmp_path / kind
        folder.mkdir()
        clip = encoders.model_of(kind, folder)
        assert pad_token(clip) == pad
        assert clip.reads_clip_tokens is (kind in ("clip", "coca"))
    clip.model.text.vocab_size = 250_002
    assert tokenize(clip, ["a dog"]).values.dtype == np.int32


def test_a_encoder_without_a_text_vector_or_tokenizer_is_refused(encoders: Any, tmp_path: Path) -> None:
    encoders.KINDS["none"] = (True, {"text_cfg": {**encoders.TEXT, "pool_type": "none"}, "custom_text": True})
    clip = encoders.model_of("none", tmp_path)
    del encoders.KINDS["none"]
    with pytest.raises(ModelError, match=r"pool_type none.*choose a model that pools"):
        encode_ragged(clip, Ragged.from_lists([[49406, 320, 49407]]))
    clip = encoders.model_of("roberta", tmp_path)
    clip.model_cfg["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"cannot load the tokenizer of .*next to the weights"):
        tokenize(clip, ["a"])


@pytest.mark.nightly
def test_every_architecture_of_open_clip_has_a_kind(encoders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built with one layer and without memory; Hugging Face encoders, which need the hub, are of one kind anyway."""
    monkeypatch.setattr("paraclip_core.clip.encode.pad_token", lambda clip: 1 if "SigLIP" in clip.reference else 0)
    kinds: dict[bool, set[str]] = {}
    for name in open_clip.list_models():
        config: Any = get_model_config(name)
        # Other tests name encoders of their own.
        if "hf_model_name" in config["text_cfg"] or name.startswith("encoder-"):
            continue
        config["text_cfg"] |= {"layers": 1}
        attentional = {"attentional_pool": True, "output_tokens": True} if "multimodal_cfg" in config else {}
        config["vision_cfg"] = {**encoders.VISION, **attentional}
        with torch.device("meta"):
            model = drawn(config)
        kinds.setdefault(text_encoder(ClipModel(model, config, {}, name)).padded, set()).add(name)
    causal = {"ViT-B-32", "RN50-quickgelu", "EVA02-B-16", "PE-Core-B-16", "MobileCLIP-B", "convnext_base"}
    assert {*causal, "ViT-H-14-worldwide", "ViT-L-14-worldwide"} <= kinds[False]
    assert {"ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "ViT-L-14-CLIPA", "MobileCLIP-S1", "coca_ViT-B-32"} <= kinds[True]
    assert sum(map(len, kinds.values())) > 100


def test_code_beside_a_tokenizer_is_not_run(encoders: Any, tmp_path: Path) -> None:
    save_release(encoders.model_of("roberta", tmp_path), tmp_path / "m", "card")
    config = json.loads((tmp_path / "m/open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "m/open_clip_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((tmp_path / "m/tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(tokenizer))
    mark = tmp_path / "mark"
    (tmp_path / "m/own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: ...\n")
    try:
        tokenize(load_clip(str(tmp_path / "m")), ["a dog"])
    except ModelError as error:
        assert "cannot load the tokenizer" in str(error)
    assert not mark.exists()


def test_bf16_is_near_fp32_and_still_float32(tiny: Tiny, encoders: Any) -> None:
    clip = tiny()
    tokens = tokenize(clip, encoders.TEXTS)
    with torch.no_grad():
        exact, rough = encode_ragged(clip, tokens), encode_ragged(clip, tokens, precision="bf16")
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05


def test_the_arithmetic_that_is_picked_is_no_slower_than_fp32() -> None:
    picked = pick_precision("auto", torch.device("cpu"))

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        took = []
        for _ in range(5):
            start = time.process_time()
            left @ right
            took.append(time.process_time() - start)
        return min(took)

    # Where a CPU has no instructions for bf16, it is fifty times.
    assert seconds({"bf16": torch.bfloat16, "fp32": torch.float32}[picked]) < 5 * seconds(torch.float32)
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"


def test_empty_lists_and_wrong_tokens(tiny: Tiny) -> None:
    clip = tiny({"context_length": 16})
    assert encode_texts(clip, []).shape == (0, 32)
    assert encode_ragged(clip, Ragged.from_lists([])).shape == (0, 32)
    assert encode_images(clip, []).shape == (0, 32)
    with pytest.raises(ModelError, match="tokenized for another model"):
        encode_ragged(clip, Ragged.from_lists([[60000]]))


def test_chunks_stay_within_the_budget_and_waste_little() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(4, 30, 1500))
    slices = list(encode._chunks(lengths, 2048))
    assert [s.start for s in slices[1:]] == [s.stop for s in slices[:-1]] and slices[-1].stop == 1500
    padded = [(s.stop - s.start) * int(lengths[s.stop - 1]) for s in slices]
    assert max(padded) <= 2048
    assert sum(padded) < 1.06 * lengths.sum()
