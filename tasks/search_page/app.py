"""The search page and its HTTP interface (`/search`, `/feedback`, `/images/ROW`), described by `/openapi.json`."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field

from paraclip.tasks.search_page.catalogue import Catalogue
from paraclip.tasks.search_page.engine import BASE, Query, Ranking, SearchEngine
from paraclip.tasks.search_page.marks import Marks
from paraclip_core.errors import ParaclipError
from paraclip_core.evaluation.metrics import average_overlap, jaccard

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

ImageIds = Annotated[list[str], Field(max_length=MOST_MARKS)]


class SearchRequest(BaseModel):
    """A query in words, or an image of the index to find others like it."""

    query: Annotated[str, Field(max_length=LONGEST_QUERY)] = ""
    rewording: Annotated[str, Field(max_length=LONGEST_QUERY)] = ""
    """Other words for the query: how far both rankings agree is a part of the answer."""
    like: str | None = None
    """Id of an image to search with, in place of a query."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the tuned side: 0 is the base, 1 the tuned model, between them their weights are interpolated."""
    count: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 20
    contains: Annotated[str, Field(max_length=LONGEST_QUERY)] = ""
    """Only images whose id or caption holds this text."""
    right: ImageIds = []
    """Ids of images marked as right; with any mark the ranking follows them."""
    wrong: ImageIds = []


class Feedback(BaseModel):
    """A mark on an image that a query found."""

    query: Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY)]
    image_id: str
    mark: Annotated[int, Field(ge=-1, le=1)]
    """1 right, -1 wrong, 0 taken back."""


def make_app(
    engine: SearchEngine,
    catalogue: Catalogue,
    marks: Marks,
    facts: dict[str, Any],
    token: str | None = None,
    report: Path | None = None,
) -> FastAPI:
    """The application.

    Args:
        engine: ranks.
        catalogue: names, captions and pictures.
        marks: keeps feedback.
        facts: what the page says of the models and the index.
        token: asked of every request, by `?token=` once or `Authorization: Bearer`; None asks for nothing.
        report: the page of the model's run.
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
        """The models, the index, and what can be shown."""
        shown = {"pictures": catalogue.has_pictures, "captions": catalogue.captions is not None}
        shown["report"] = report is not None
        return {**facts, "images": len(catalogue.ids), "repaired": engine.repaired, **shown}

    if report is not None:
        app.get("/report", response_class=Response)(_file(report, "text/html", REPORT_HEADERS))

    @app.post("/search")
    def search(asked: SearchRequest) -> dict[str, Any]:
        """Rankings by the base and by the tuned model, and how far two wordings agree in each."""
        if not asked.query.strip() and asked.like is None:
            raise HTTPException(422, "query: expected words to search for, or `like`, the id of an image")
        return _Search(engine, catalogue, asked).answer()

    @app.post("/feedback")
    def feedback(given: Feedback) -> dict[str, Any]:
        """Keep a mark."""
        _row(catalogue, given.image_id)
        marks.mark(given.query, given.image_id, given.mark)
        return {"kept": True}

    @app.get("/images/{row}", response_class=Response)
    def image(row: int) -> Response:
        """A small JPEG of the image in this row of the index."""
        return _picture(catalogue, row)

    return app


def _guard(app: FastAPI, token: str | None) -> None:
    """Ask for the token, refuse large requests, and say in one line what is wrong with a request."""

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


def _picture(catalogue: Catalogue, row: int) -> Response:
    if not 0 <= row < len(catalogue.ids):
        raise HTTPException(404, f"the index has no row {row}")
    try:
        picture = catalogue.picture(row)
    except ParaclipError as error:
        raise HTTPException(404, str(error)) from error
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


class _Search:
    """One request, by both models."""

    def __init__(self, engine: SearchEngine, catalogue: Catalogue, asked: SearchRequest) -> None:
        self._engine, self._catalogue, self._asked = engine, catalogue, asked

    def answer(self) -> dict[str, Any]:
        asked, catalogue = self._asked, self._catalogue
        sides = {"base": BASE, "tuned": asked.alpha} if self._engine.repaired else {"base": BASE}
        wordings = [asked.query, *([asked.rewording] if asked.rewording.strip() else [])]
        query = Query(
            alphas=tuple(sides.values()),
            wordings=tuple(wordings) if asked.like is None else (),
            count=max(asked.count, DEPTH),
            like=None if asked.like is None else _row(catalogue, asked.like),
            within=catalogue.matching(asked.contains),
            right=tuple(_row(catalogue, name) for name in asked.right),
            wrong=tuple(_row(catalogue, name) for name in asked.wrong),
        )
        rankings = iter(self._engine.search(query))
        of_each = len(query.wordings) or 1
        return {name: self._side(*islice(rankings, of_each)) for name in sides}

    def _side(self, ranking: Ranking, of_rewording: Ranking | None = None) -> dict[str, Any]:
        side: dict[str, Any] = {"hits": self._hits(ranking)}
        return side if of_rewording is None else side | self._agreement(ranking, of_rewording)

    def _agreement(self, first: Ranking, second: Ranking) -> dict[str, Any]:
        depth = min(DEPTH, len(first.rows))
        if not depth:
            return {}
        lists = first.rows[None, :depth], second.rows[None, :depth]
        shared = set(second.rows[:depth].tolist())
        return {
            "depth": depth,
            "ao": round(100 * float(average_overlap(*lists, k=depth)[0]), 1),
            "js": round(100 * float(jaccard(*lists, k=depth)[0]), 1),
            "shared": [row for row in first.rows[:depth].tolist() if row in shared],
            "rewording_hits": self._hits(second),
        }

    def _hits(self, ranking: Ranking) -> list[dict[str, Any]]:
        rows: list[int] = ranking.rows[: self._asked.count].tolist()
        return [
            {
                "row": row,
                "image_id": self._catalogue.ids[row],
                "score": round(float(score), 4),
                "caption": self._catalogue.caption(row),
            }
            for row, score in zip(rows, ranking.scores, strict=False)
        ]


def _row(catalogue: Catalogue, image_id: str) -> int:
    row = catalogue.row(image_id)
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
