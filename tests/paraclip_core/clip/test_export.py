"""Models written for other libraries, loaded back by those libraries themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.encode import encode_images, encode_texts, image_transform, model_tokenizer, pad_token
from paraclip_core.clip.export import ONNX_FILE, ONNX_TEXTS, save_hf, save_onnx, save_release
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.options import ModelOptions
from paraclip_core.errors import ModelError
from tests.kit.encoders import VISION

Tiny = Callable[..., ClipModel]
TEXTS = [
    "a dog on a beach",
    "two men & a boat, 3 o'clock",
    "A",
    "word " * 100,
    "naïve café ❤ photo",
    "it’s  “Fun”, A_dog",
]
SIGLIP_PREPROCESS = {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
PAGE = Path(__file__).parents[3] / "docs/serving-elsewhere.md"
SMALL = ModelOptions(text_width=64, text_layers=2, embed_dim=32)
WEIGHTS = "open_clip_model.safetensors"


def _picture(width: int, height: int) -> Image.Image:
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(values.astype(np.uint8))


@pytest.fixture
def clip(kind: str, tiny: Tiny, encoders: Any, tmp_path: Path) -> ClipModel:
    """A model of a kind, with the image preprocessing of its family."""
    if kind == "built-in":
        return built_in_clip(SMALL)
    if kind in ("quick_gelu", "custom_text"):
        return tiny(**{kind: True})
    clip = encoders.model_of(kind, tmp_path)
    clip.preprocess_cfg |= SIGLIP_PREPROCESS if kind.startswith("siglip") else {}
    return clip


def recipe(heading: str) -> str:
    """The code of a section of docs/serving-elsewhere.md."""
    section = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2]
    return section.partition("```")[2].partition("\n")[2].partition("```")[0]


@pytest.mark.parametrize("kind", ["quick_gelu", "custom_text", "siglip", "siglip2"])
def test_transformers_loads_a_model(clip: ClipModel, kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    save_hf(clip, tmp_path)
    model: Any = AutoModel.from_pretrained(tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    assert type(model).__name__ == ("SiglipModel" if kind.startswith("siglip") else "CLIPModel")
    images = [_picture(50, 40), _picture(32, 90)]
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding="max_length", truncation=True)
    own = model_tokenizer(clip)(TEXTS)
    # transformers pads CLIP's texts with the end token, after the token that is read.
    assert torch.equal(inputs["input_ids"][own != pad_token(clip)], own[own != pad_token(clip)])
    # The processor's own scaling rounds grey levels.
    pixels = torch.stack([image_transform(clip)(image) for image in images])
    assert (inputs["pixel_values"] - pixels).abs().max() < 0.05
    inputs["pixel_values"] = pixels
    with torch.no_grad():
        output = model(**inputs)
        expected = F.normalize(clip.model.encode_image(pixels), dim=-1)  # type: ignore[operator]
    np.testing.assert_allclose(output.text_embeds.numpy(), encode_texts(clip, TEXTS), atol=1e-5)
    torch.testing.assert_close(output.image_embeds, expected, atol=1e-5, rtol=0)
    assert model.logit_scale == clip.model.logit_scale
    assert kind not in ("siglip", "siglip2") or model.logit_bias == clip.model.logit_bias


def test_onnx_without_its_packages(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paraclip_core.clip.export.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"onnx and onnxscript; run: pip install 'paraclip\[export\]'"):
        save_onnx(tiny(), tmp_path)


def test_what_transformers_does_not_have_is_refused(tiny: Tiny, encoders: Any, tmp_path: Path) -> None:
    longest, tanh = tiny(), encoders.model_of("siglip2", tmp_path)
    longest.preprocess_cfg["resize_mode"] = "longest"
    tanh.visual.trunk.blocks[1].mlp.act = torch.nn.SiLU()
    cases = [
        ("encoders are built differently", built_in_clip(SMALL)),
        ("tokenizers cannot produce its tokens", tiny({"no_causal_mask": True}, custom_text=True)),
        ("resize_mode is longest", longest),
        ("Missing key.*pre_layrnorm", tiny(vision_cfg={**VISION, "no_ln_pre": True})),
        ("with the same weights the embeddings of images differ", tanh),
        *(("CLIPModel: ", encoders.model_of(kind, tmp_path)) for kind in ("roberta", "clipa", "coca")),
    ]
    for reason, clip in cases:
        with pytest.raises(ModelError, match=rf"(?s){reason}.*export it as open_clip"):
            save_hf(clip, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["built-in", "quick_gelu", "custom_text"])
def test_stock_open_clip_loads_a_release(clip: ClipModel, tmp_path: Path, data_root: Path) -> None:
    save_release(clip, tmp_path, "# A card\n")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "open_clip_config.json", WEIGHTS}
    with ImageArchive(data_root / "flickr8k/images_128.tar") as archive:
        images = [archive.open(name) for name in archive.names()[:3]]

    parts: Any = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    model, _, preprocess = parts
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    model.eval()
    with torch.no_grad():
        texts = F.normalize(model.encode_text(tokenizer(TEXTS)), dim=-1).numpy()
        pixels = F.normalize(model.encode_image(torch.stack([preprocess(i) for i in images])), dim=-1).numpy()
    np.testing.assert_allclose(texts, encode_texts(clip, TEXTS), atol=1e-5)
    features = encode_images(clip, images, batch_size=2)
    assert features.dtype == np.float16
    np.testing.assert_allclose(pixels, features.astype(np.float32), atol=1e-3)


def test_weights_that_are_not_finite_are_not_released(tiny: Tiny, tmp_path: Path) -> None:
    clip = tiny()
    with torch.no_grad():
        clip.model.get_parameter("ln_final.weight")[0] = float("inf")
    with pytest.raises(ModelError, match=r"ln_final\.weight"):
        save_release(clip, tmp_path / "m", "card")
    assert not (tmp_path / "m" / WEIGHTS).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "siglip2",
        *(pytest.param(k, marks=pytest.mark.nightly) for k in ("quick_gelu", "siglip", "roberta", "built-in")),
    ],
)
def test_onnxruntime_runs_the_text_encoder_and_the_recipes(
    clip: ClipModel, kind: str, encoders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    from onnxruntime import InferenceSession
    from transformers import AutoTokenizer

    def embedded(session: Any, name: str, ids: np.ndarray) -> np.ndarray:
        return session.run(None, {name: ids})[0]

    monkeypatch.chdir(tmp_path)
    save_release(clip, Path("my-model"), "card")
    save_onnx(clip, Path("my-onnx"))
    session = InferenceSession(f"my-onnx/{ONNX_FILE}")
    facts = json.loads(Path("my-onnx", ONNX_TEXTS).read_text())
    expected = encode_texts(clip, encoders.TEXTS)
    ids = model_tokenizer(clip)(encoders.TEXTS).numpy()
    np.testing.assert_allclose(embedded(session, "input_ids", ids), expected, rtol=0, atol=1e-5)
    # One text alone, cut to what the facts say that it needs.
    length = int((ids[1] != facts["pad_token_id"]).sum())
    if kind.startswith("siglip"):
        length = facts["shortest_length"]
    np.testing.assert_allclose(embedded(session, "input_ids", ids[1:2, :length]), expected[1:2], rtol=0, atol=1e-5)
    tokenizer: Any = AutoTokenizer.from_pretrained("my-onnx")
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="np").input_ids
    np.testing.assert_allclose(embedded(session, "input_ids", ids), encode_texts(clip, TEXTS), rtol=0, atol=1e-5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        exec(recipe("Immich"), {})
    exec(recipe("The text encoder in int8"), {})
    texts = ["a photo of a dog", "Two men on a boat", "a long caption, " * (1 if kind.startswith("siglip") else 60)]
    rows = [row[None] for row in model_tokenizer(clip)(texts).numpy()]
    immich, int8 = InferenceSession("model.onnx"), InferenceSession("my-onnx/text_model_int8.onnx")
    vectors = np.concatenate([embedded(immich, "text", row.astype(np.int32)) for row in rows])
    expected = encode_texts(clip, texts).astype(np.float32)
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    rough = np.concatenate([embedded(int8, "input_ids", row) for row in rows])
    assert (rough * expected).sum(axis=1).mean() > 0.98 and not np.array_equal(rough, vectors)


QUERY = "a dog on a beach"
PICTURES = 6


def _ranking(clip: ClipModel, images: np.ndarray) -> list[int]:
    return np.argsort(-(images @ encode_texts(clip, [QUERY])[0])).tolist()


@pytest.mark.filterwarnings("ignore")  # of these libraries
@pytest.mark.parametrize("kind", ["clip", "siglip2"])
@pytest.mark.parametrize("library", ["sentence_transformers", "fastembed", "lancedb", "clip_retrieval"])
def test_other_software_searches_the_same_index(
    library: str, clip: ClipModel, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32, 3), np.uint8)
    images = encode_images(clip, [Image.fromarray(picture) for picture in noise]).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", clip.model_cfg)  # as the page names it
    ranking = globals()[f"_{library}"](clip, images)
    if isinstance(ranking, np.ndarray):
        np.testing.assert_allclose(ranking, encode_texts(clip, [QUERY]), atol=1e-5)
        ranking = np.argsort(-(images @ ranking[0])).tolist()
    assert ranking == _ranking(clip, images)


def _sentence_transformers(clip: ClipModel, images: np.ndarray) -> Any:
    save_hf(clip, Path("my-hf"))
    exec(recipe("sentence-transformers"), namespace := {})
    own = namespace["model"].encode([picture := _picture(32, 32)], normalize_embeddings=True)
    np.testing.assert_allclose(own, encode_images(clip, [picture]).astype(np.float32), atol=2e-3)
    return namespace["queries"]


def _fastembed(clip: ClipModel, images: np.ndarray) -> Any:
    from fastembed.text.custom_text_embedding import CustomTextEmbedding  # pyright: ignore[reportMissingImports]

    CustomTextEmbedding.SUPPORTED_MODELS.clear()
    save_onnx(clip, Path("my-onnx"))
    exec(recipe("FastEmbed"), namespace := {})
    return np.stack(namespace["queries"])


def _lancedb(clip: ClipModel, images: np.ndarray) -> Any:
    import lancedb  # pyright: ignore[reportMissingImports]

    save_release(clip, Path("my-model"), "card")
    rows = [{"number": number, "vector": vector} for number, vector in enumerate(images)]
    lancedb.connect("my-lancedb").create_table("images", rows)
    exec(recipe("LanceDB"), namespace := {})
    return [hit["number"] for hit in namespace["hits"]]


def _clip_retrieval(clip: ClipModel, images: np.ndarray) -> Any:
    import faiss  # pyright: ignore[reportMissingImports]
    import pyarrow as pa
    import pyarrow.parquet as pq

    clip_back: Any = import_module("clip_retrieval.clip_back")  # whose package has a function of this name
    loading: Any = import_module("all_clip.main")
    loading.load_clip.cache_clear()  # the path is the same for each kind
    loading.load_clip_without_warmup.cache_clear()
    save_release(clip, Path("my-model"), "card")
    Path("index/metadata").mkdir(parents=True)
    pq.write_table(pa.table({"image_path": [str(n) for n in range(len(images))]}), "index/metadata/0.parquet")
    index = faiss.IndexFlatIP(images.shape[1])
    index.add(images)
    faiss.write_index(index, "index/image.index")
    Path("indices_paths.json").write_text(json.dumps({"mine": "index"}))
    # The command of the page, up to where it opens a port.
    served: dict[str, Any] = {}
    words = recipe("clip-retrieval").replace("\\\n", " ").split()[2:]
    options = {
        name.removeprefix("--"): {"False": False}.get(value, value)
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            clip_back.Api, "add_resource", lambda _, kind, *__, **given: served.update({kind.__name__: given})
        )
        patch.setattr(clip_back.Flask, "run", lambda *_, **__: None)
        clip_back.clip_back(**options)
    service = clip_back.KnnService(**served["KnnService"]["resource_class_kwargs"])
    counts = {"num_images": PICTURES, "num_result_ids": PICTURES}
    hits = service.query(text_input=QUERY, modality="image", deduplicate=False, **counts)
    return [int(hit["image_path"]) for hit in hits]
