"""The search page over one index, with base, tuned and expanded queries side by side, and its HTTP interface.

`/search`, `/feedback` and `/images/ROW` are described by `/openapi.json`.
"""

from __future__ import annotations

import io
import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from numpy.typing import NDArray
from PIL import ImageOps
from pydantic import BaseModel, Field

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.files import parse_json, write_atomic
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.image_index import SearchTarget, load_models
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.expansion import Heads, mean_features
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.search import HELD_BYTES, Searcher, refine
from paraclip_core.errors import InputError, ParaclipError
from paraclip_core.evaluation.metrics import average_overlap, jaccard
from paraclip_core.paths import expand
from paraclip_core.training.choice import interpolate
from paraclip_core.training.process import free_memory

HERE = Path(__file__).parent
LONGEST_QUERY = 2_000
LARGEST_BODY = 65_536
MOST_IMAGES, MOST_MARKS = 100, 500
DEPTH = 10
COOKIE = "paraclip-token"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'"
}
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
BASE = 0.0
"""The α of the base model; 1 is the tuned one."""
HELD_SHARE = 0.5
"""Share of the free memory that the index may use; a larger index is read from disk on every search."""
SIDE, QUALITY = 320, 80
PICTURES = 4096
"""Thumbnails kept in memory, about 15 kB each."""
CAPTIONS = "captions.jsonl"


class Ranking(NamedTuple):
    """Rows of the index, best first."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Asked(NamedTuple):
    """A query: the mean feature of some texts, by the model at an α."""

    alpha: float
    texts: Sequence[str]
    """The query itself, with its paraphrases if it is expanded."""


class SearchEngine:
    """Searches one index with the base and the tuned model."""

    def __init__(self, target: SearchTarget, device: str = "cpu") -> None:
        """Load both models once."""
        free = free_memory(torch.device("cpu")) or 0
        self.searcher = Searcher(target.index.features, target.index.ids, max(HELD_BYTES, int(HELD_SHARE * free)))
        models = load_models(target, self.searcher, device)
        self._base, self._tuned = models["base"], models["tuned"]
        self.repaired = target.base != target.tuned
        self._weights = {name: _text_weights(clip) for name, clip in models.items()}
        self._blended: ClipModel | None = None
        self._alpha = -1.0
        # One request at a time: the mixed model and the index already use the whole processor.
        self._lock = threading.Lock()

    def search(
        self,
        asked: Sequence[Asked],
        count: int,
        like: int | None = None,
        right: Sequence[int] = (),
        wrong: Sequence[int] = (),
    ) -> list[Ranking]:
        """Return a ranking for each query; with `like`, for the image in that row.

        Rankings take into account the rows of images marked as right or wrong, see :func:`refine`.
        """
        with self._lock:
            if like is not None:
                vectors = list(self.searcher.rows(np.full(len(asked), like)))
            else:
                vectors = [self._vector(one) for one in asked]
            if right or wrong:
                marked = [self.searcher.rows(np.array(rows, np.int64)) for rows in (right, wrong)]
                vectors = [refine(vector, *marked) for vector in vectors]
            rows, scores = self.searcher.nearest(np.stack(vectors), count)
            return [Ranking(*ranking) for ranking in zip(rows, scores, strict=True)]

    def _vector(self, asked: Asked) -> NDArray[np.float32]:
        return mean_features(partial(encode_texts, self._model(asked.alpha)), [asked.texts])[0]

    def _model(self, alpha: float) -> ClipModel:
        if alpha in (BASE, 1.0):
            return self._tuned if alpha == 1.0 else self._base
        if self._blended is None:
            self._blended = deepcopy(self._tuned)
        if alpha != self._alpha:
            parameters = dict(self._blended.model.named_parameters())
            chosen = {name: parameters[name] for name in self._weights["tuned"]}
            interpolate(chosen, self._weights["base"], self._weights["tuned"], alpha)
            self._alpha = alpha
        return self._blended


def _text_weights(clip: ClipModel) -> dict[str, torch.Tensor]:
    """Every weight but the image encoder's."""
    return {
        name: parameter.detach() for name, parameter in clip.model.named_parameters() if not name.startswith("visual.")
    }


class Catalogue:
    """Images by their row in the index."""

    def __init__(self, target: SearchTarget, store: ArtifactStore) -> None:
        """Read a caption and the picture's location for each image."""
        self.ids = target.index.ids
        self.captions: pa.Array | None = None
        self.rows: dict[str, int] = {name: row for row, name in enumerate(self.ids)}
        self._archives: dict[str, ImageArchive] = {}
        # An archive's name is one shared object for all of its images.
        self._places: list[tuple[str, str] | None] = [None] * len(self.ids)
        self._given = None if target.images is None else _archive_of(target.images, self.ids)
        self._scenes: Path | None = None
        if target.captions is not None:
            made_from = target.captions.manifest.inputs.get("scenes")
            scenes = None if made_from is None else store.find("scenes", made_from)
            self._scenes = None if scenes is None else scenes.path
            self._read(target.captions.path / "captions")
        self.has_pictures = self._given is not None or any(self._places)
        """Whether the page can show pictures."""
        self._lock = threading.Lock()
        self.picture = lru_cache(PICTURES)(self._picture)

    def caption(self, row: int) -> str | None:
        """A caption of the image; None if there is none."""
        return None if self.captions is None else self.captions[row].as_py()

    def _read(self, folder: Path) -> None:
        captions: list[str | None] = [None] * len(self.ids)
        archives: dict[str, str] = {}
        for batch in iter_batches(folder, ["image_id", "caption", "images", "image_path"]):
            for row in batch.to_pylist():
                place = self.rows.get(row["image_id"])
                if place is None or captions[place] is not None:
                    continue
                captions[place] = row["caption"]
                if row["images"] and row["image_path"]:
                    self._places[place] = archives.setdefault(row["images"], row["images"]), row["image_path"]
        self.captions = pa.array(captions, pa.string())

    def _picture(self, row: int) -> bytes:
        """A small JPEG of the image, without metadata."""
        with self._lock:
            archive, name = self._place(row)
            image = archive.open(name)
        buffer = io.BytesIO()
        ImageOps.contain(image, (SIDE, SIDE)).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def _place(self, row: int) -> tuple[ImageArchive, str]:
        if self._given is not None:
            return self._given, self.ids[row]
        if (place := self._places[row]) is None:
            raise InputError(f"the location of the picture of {self.ids[row]!r} is unknown; give --images")
        images, name = place
        if images not in self._archives:
            self._archives[images] = ImageArchive(expand(images) if self._scenes is None else self._scenes / images)
        return self._archives[images], name


def _archive_of(images: Path, ids: Sequence[str]) -> ImageArchive:
    archive = ImageArchive(images)
    if not any(archive.has(name) for name in ids):
        archive.close()
        raise InputError(
            f"{images} has none of the {len(ids)} images of the index (the first is {ids[0]!r}); expected their file "
            "names as the index's ids, see --ids"
        )
    return archive


class Marks:
    """A JSONL file with a row for each image marked as right for a query, with the query as its caption.

    It is a source for ``data.sources`` like any other, so `regenerate` paraphrases and trains on new marks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CAPTIONS
        self._lock = threading.Lock()

    def mark(self, query: str, image_id: str, value: int) -> None:
        """Store a mark: 1 right, -1 wrong, 0 withdrawn. The last one for a query and an image counts."""
        row = {"image_id": image_id, "image": image_id, "caption": query, "source": "feedback"}
        with self._lock:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
            rows = [other for other in map(parse_json, lines) if other != row] + [row] * (value > 0)
            text = "".join(json.dumps(one, ensure_ascii=True) + "\n" for one in rows)
            write_atomic(self._path, lambda file: file.write(text.encode()))


ImageIds = Annotated[list[str], Field(max_length=MOST_MARKS)]


class SearchRequest(BaseModel):
    """A query in words, or an image of the index to find similar ones."""

    query: Annotated[str, Field(max_length=LONGEST_QUERY)] = ""
    paraphrased_query: Annotated[str, Field(max_length=LONGEST_QUERY)] = ""
    """A paraphrase of the query; the answer includes how far both rankings agree."""
    like: str | None = None
    """Id of an image to search with, in place of a query."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """α of the tuned side: 0 is the base, 1 the tuned model; in between, their weights are interpolated."""
    count: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 20
    right: ImageIds = []
    """Ids of images marked as right; marks change the ranking."""
    wrong: ImageIds = []


class Feedback(BaseModel):
    """A mark on a search result."""

    query: Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY)]
    image_id: str
    mark: Annotated[int, Field(ge=-1, le=1)]
    """1 right, -1 wrong, 0 withdrawn."""


def make_app(
    engine: SearchEngine,
    catalogue: Catalogue,
    marks: Marks,
    facts: dict[str, Any],
    token: str | None = None,
    report: Path | None = None,
    heads: Heads | None = None,
) -> FastAPI:
    """Make the application; the page shows `facts` about models and index, `report` is the page of the model's run.

    Queries that `heads` has paraphrases of are also ranked by the mean feature with them.

    With a `token`, every request needs it, as `?token=` once or `Authorization: Bearer`.
    """
    app = FastAPI(title="paraclip search", docs_url=None, redoc_url=None)
    _guard(app, token)
    for path, (name, kind) in FILES.items():
        app.get(path, include_in_schema=False)(_file(HERE / name, kind))

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/facts")
    def describe() -> dict[str, Any]:
        """Describe the models, the index, and what can be shown."""
        shown = {"pictures": catalogue.has_pictures, "captions": catalogue.captions is not None}
        shown["report"] = report is not None
        counts = {"images": len(catalogue.ids), "heads": 0 if heads is None else len(heads)}
        return {**facts, **counts, "repaired": engine.repaired, **shown}

    if report is not None:
        app.get("/report", response_class=Response)(_file(report, "text/html", REPORT_HEADERS))

    @app.post("/search")
    def search(asked: SearchRequest) -> dict[str, Any]:
        """Rank by the base and by the tuned model, and report how far a query and its paraphrase agree in each.

        For a query of the heads file, `expanded` ranks by the tuned side's mean feature of query and paraphrases.
        """
        if not asked.query.strip() and asked.like is None:
            raise HTTPException(422, "query: expected words to search for, or `like`, the id of an image")
        return _answer(engine, catalogue, asked, heads)

    @app.post("/feedback")
    def feedback(given: Feedback) -> dict[str, Any]:
        """Store a mark."""
        _row(catalogue, given.image_id)
        marks.mark(given.query, given.image_id, given.mark)
        return {"kept": True}

    @app.get("/images/{row}", response_class=Response)
    def image(row: int) -> Response:
        """A small JPEG of the image in this row of the index."""
        if not 0 <= row < len(catalogue.ids):
            raise HTTPException(404, f"the index has no row {row}")
        try:
            picture = catalogue.picture(row)
        except ParaclipError as error:
            raise HTTPException(404, str(error)) from error
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return app


def _guard(app: FastAPI, token: str | None) -> None:
    """Require the token, refuse large requests, and report in one line what is wrong with a request."""

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.query_params.get("token")
        if token is not None and not _allowed(request, given, token):
            return JSONResponse({"detail": "this page needs the token that `paraclip ui` printed"}, 401)
        length = request.headers.get("content-length")
        if request.method == "POST" and length is None:
            return JSONResponse({"detail": "the request does not say its length (Content-Length)"}, 411)
        if int(length or 0) > LARGEST_BODY:
            return JSONResponse({"detail": f"the request is larger than {LARGEST_BODY} bytes"}, 413)
        response = await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if token is not None and given:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    @app.exception_handler(ParaclipError)
    async def failed(_: Request, error: ParaclipError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"}, 422)


def _sides(engine: SearchEngine, asked: SearchRequest, heads: Heads | None) -> dict[str, list[Asked]]:
    """What each side of the answer ranks by: the query and, if there is one, its paraphrase."""
    alphas = {"base": BASE, "tuned": asked.alpha} if engine.repaired else {"base": BASE}
    if asked.like is not None:
        return {name: [Asked(alpha, [])] for name, alpha in alphas.items()}
    queries = [asked.query, *filter(str.strip, [asked.paraphrased_query])]
    sides = {name: [Asked(alpha, [query]) for query in queries] for name, alpha in alphas.items()}
    groups = [] if heads is None else [heads.group(query) for query in queries]
    if groups and groups[0] is not None:
        sides["expanded"] = [Asked([*alphas.values()][-1], group) for group in groups if group is not None]
    return sides


def _answer(engine: SearchEngine, catalogue: Catalogue, asked: SearchRequest, heads: Heads | None) -> dict[str, Any]:
    """Answer one request with every side."""
    sides = _sides(engine, asked, heads)

    def hits(ranking: Ranking) -> list[dict[str, Any]]:
        return [
            {"row": row, "image_id": catalogue.ids[row], "score": round(float(score), 4)}
            | {"caption": catalogue.caption(row)}
            for row, score in zip(ranking.rows[: asked.count].tolist(), ranking.scores, strict=False)
        ]

    def side(ranking: Ranking, of_paraphrased: Ranking | None = None) -> dict[str, Any]:
        if of_paraphrased is None:
            return {"hits": hits(ranking)}
        depth = min(DEPTH, len(ranking.rows))
        lists = ranking.rows[None, :depth], of_paraphrased.rows[None, :depth]
        shared = set(of_paraphrased.rows[:depth].tolist())
        return {
            "hits": hits(ranking),
            "depth": depth,
            "ao": round(100 * float(average_overlap(*lists, k=depth)[0]), 1),
            "js": round(100 * float(jaccard(*lists, k=depth)[0]), 1),
            "shared": [row for row in ranking.rows[:depth].tolist() if row in shared],
            "paraphrased_hits": hits(of_paraphrased),
        }

    rows = [[_row(catalogue, name) for name in names] for names in (asked.right, asked.wrong)]
    like = None if asked.like is None else _row(catalogue, asked.like)
    every = [one for several in sides.values() for one in several]
    rankings = iter(engine.search(every, max(asked.count, DEPTH), like, *rows))
    return {name: side(*islice(rankings, len(several))) for name, several in sides.items()}


def _row(catalogue: Catalogue, image_id: str) -> int:
    row = catalogue.rows.get(image_id)
    if row is None:
        raise HTTPException(404, f"the index has no image {image_id[:200]!r}; it may be gone since the page was loaded")
    return row


def _allowed(request: Request, given: str | None, token: str) -> bool:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    offered = (given, bearer, request.cookies.get(COOKIE))
    return any(secrets.compare_digest(text.encode(), token.encode()) for text in offered if text)


def _file(path: Path, kind: str, headers: dict[str, str] | None = None) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        """A page."""
        return FileResponse(path, media_type=kind, headers=headers)

    return send
