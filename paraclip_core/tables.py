"""Arrow schemas of the tables that stages pass on, and how DuckDB reads them.

All ids are 16 bytes of blake2b.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

DUCKDB: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
"""Configuration of every connection: it downloads nothing and takes no Python variable for a table."""

CAPTIONS = pa.schema(
    [
        pa.field("caption_id", pa.binary(16), nullable=False),  # of (image_id, caption)
        pa.field("image_id", pa.string()),  # key of the image, null if a source has captions only
        pa.field("image_path", pa.string()),  # tar member or file name inside the source's `images`
        pa.field("images", pa.string()),  # the source's `images`, relative to data.root
        pa.field("caption", pa.string(), nullable=False),  # cleaned
        pa.field("caption_raw", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, val or test
        pa.field("license", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # file, relative to data.root
        pa.field("source_row", pa.int64(), nullable=False),
    ]
)

QUERY_LOG = pa.schema([*CAPTIONS, pa.field("count", pa.int64(), nullable=False)])  # how often it was asked
"""Queries of a log in place of captions: `image_id` is the image that was clicked most often, null if none was."""

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_row", pa.int64()),  # null for the whole file
        pa.field("reason", pa.string(), nullable=False),  # a short code, e.g. too_few_words
        pa.field("detail", pa.string(), nullable=False),  # what was found and what was expected
        pa.field("caption_raw", pa.string()),  # truncated to 2,000 characters
    ]
)

PARAPHRASES = pa.schema(
    [
        pa.field("caption_id", pa.binary(16), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("paraphrase_1", pa.string(), nullable=False),
        pa.field("paraphrase_2", pa.string()),  # null after step 1
        pa.field("similarity_1", pa.float32()),  # sentence-encoder cosine, caption against paraphrase 1
        pa.field("similarity_2", pa.float32()),  # caption against paraphrase 2
        pa.field("license", pa.string(), nullable=False),
        pa.field("generation_1", pa.binary(16), nullable=False),  # key in the answers cache
        pa.field("generation_2", pa.binary(16)),
    ]
)

QUERIES = pa.schema(
    [
        pa.field("caption_id", pa.binary(16), nullable=False),
        pa.field("image_id", pa.string()),  # null for a query of a log that led to no click
        pa.field("caption", pa.string(), nullable=False),  # of the evaluation split
        pa.field("paraphrase_1", pa.string(), nullable=False),
        pa.field("paraphrased_query", pa.string(), nullable=False),  # paraphrase 2
        pa.field("similarity", pa.float32()),  # sentence-encoder cosine, caption against paraphrased query
        pa.field("license", pa.string(), nullable=False),
        pa.field("generation_1", pa.binary(16), nullable=False),  # key in the answers cache
        pa.field("generation_2", pa.binary(16), nullable=False),
    ]
)

LOG_QUERIES = pa.schema(
    [
        *QUERIES,
        pa.field("count", pa.int64(), nullable=False),  # how often it was asked
        pa.field("frequency", pa.string(), nullable=False),  # head, body or tail of the log
    ]
)
"""Held-out queries of a log in other words."""

HEADS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),  # as the user wrote it
        pa.field("paraphrases", pa.list_(pa.string()), nullable=False),  # accepted ones, best first; may be empty
        pa.field("vector", pa.list_(pa.float32()), nullable=False),  # mean feature of all of them, of length 1
    ]
)
"""Head queries, as `paraclip expand` writes them."""
HEADS_MODEL = b"paraclip.model"
"""Key of a heads file's schema metadata: the reference, for `load_clip`, of the model that its vectors are of."""

PARAPHRASE_REJECTS = pa.schema(
    [
        pa.field("caption_id", pa.binary(16), nullable=False),
        pa.field("step", pa.int8(), nullable=False),
        pa.field("attempt", pa.int16(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a filter's code
        pa.field("detail", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("answer", pa.string()),  # the best of the answers, null if there was none
        pa.field("generation", pa.binary(16), nullable=False),
    ]
)

GENERATIONS = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),  # see paraclip_core.paraphrase.keys
        pa.field("step", pa.int8(), nullable=False),
        pa.field("attempt", pa.int16(), nullable=False),
        pa.field("input", pa.string(), nullable=False),  # the text to paraphrase
        pa.field("engine", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # id and revision
        pa.field("prompt", pa.string(), nullable=False),  # prompt id
        pa.field("prompt_hash", pa.binary(16), nullable=False),  # of its whole text
        pa.field("sampling", pa.string(), nullable=False),  # canonical JSON
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("completions", pa.list_(pa.string()), nullable=False),  # raw, n of them
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
    ]
)

ANSWERS = pa.schema(
    [
        pa.field("generation", pa.binary(16)),
        pa.field("parent", pa.binary(16)),  # generation_1 of the input at step 2, zeros at step 1
        pa.field("caption", pa.string()),
        pa.field("source", pa.string()),  # the text that was asked about
        pa.field("completions", pa.list_(pa.string())),  # raw
    ]
)
"""Answers to filter, with their source texts."""

ACCEPTED = pa.struct(
    [
        pa.field("answer", pa.string()),
        pa.field("similarity", pa.float32()),  # sentence-encoder cosine with the caption, null without an encoder
    ]
)

FILTER_RESULTS = pa.schema(
    [
        pa.field("generation", pa.binary(16), nullable=False),  # key of the generation that was filtered
        pa.field("parent", pa.binary(16), nullable=False),  # generation_1 of the input at step 2, zeros at step 1
        pa.field("filters", pa.binary(16), nullable=False),  # of all that decides a filter result except the texts
        pa.field("accepted", pa.list_(ACCEPTED), nullable=False),  # the answers that passed, best first
        pa.field("answer", pa.string()),  # if none passed: the one that came closest, null if there was none
        pa.field("reason", pa.string()),  # a filter's code, null if an answer passed
        pa.field("detail", pa.string()),
        pa.field("similarity", pa.float32()),  # of the rejected answer, null if not computed
    ]
)

FEATURE_INDEX = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("pixels", pa.binary(16), nullable=False),  # blake2b of the image file: equal images share it
    ]
)

PER_QUERY = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),  # image_id that both texts describe
        pa.field("caption", pa.string(), nullable=False),
        pa.field("paraphrased_query", pa.string(), nullable=False),
        pa.field("base_ao", pa.float64(), nullable=False),  # AO@10 of the pair, 0 to 1
        pa.field("tuned_ao", pa.float64(), nullable=False),
        pa.field("base_js", pa.float64(), nullable=False),  # JS@10
        pa.field("tuned_js", pa.float64(), nullable=False),
        pa.field("base_caption_top", pa.list_(pa.string()), nullable=False),  # ten image_ids, best first
        pa.field("base_paraphrased_top", pa.list_(pa.string()), nullable=False),
        pa.field("tuned_caption_top", pa.list_(pa.string()), nullable=False),
        pa.field("tuned_paraphrased_top", pa.list_(pa.string()), nullable=False),
    ]
)

FIRST_IMAGES = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),  # the tuned model's first image
    ]
)

SAMPLES = pa.schema(
    [
        pa.field("metric", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("cluster", pa.int64(), nullable=False),  # queries of one cluster are resampled together
        pa.field("gold", pa.float64()),  # human score, null if the figure is a mean
        pa.field("base", pa.float64(), nullable=False),  # the query's value, whose mean is the figure
        pa.field("tuned", pa.float64(), nullable=False),
    ]
)


def text_hash(*parts: str | None) -> bytes:
    """16 bytes of blake2b over the parts, each prefixed with its length so that parts cannot run together."""
    texts = [b"\xff" if part is None else part.encode("utf-8", "surrogatepass") for part in parts]
    framed = b"".join([len(text).to_bytes(8, "little") + text for text in texts])
    return hashlib.blake2b(framed, digest_size=16).digest()
