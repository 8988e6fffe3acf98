"""The search page over one index, with base, tuned and expanded queries side by side, and its HTTP interface.

`/search` and `/images/ROW` are described by `/openapi.json`.
"""

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

from paraclip.tasks.search_page.engine import BASE, Catalogue, Query, Ranking, SearchEngine
from paraclip_core.clip.expansion import Heads
from paraclip_core.errors import ParaclipError
from paraclip_core.evaluation.metrics import average_overlap, jaccard

HERE = Path(__file__).parent
LONGEST_QUERY = 2_000
MOST_IMAGES = 100
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


def make_app(
    engine: SearchEngine,
    catalogue: Catalogue,
    facts: dict[str, Any],
    token: str | None = None,
    report: Path | None = None,
    heads: Heads | None = None,
) -> FastAPI:
    """Make the application; the page shows `facts` about models and index, `report` is the page of the model's run.

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
    """Require the token, and report in one line what is wrong with a request."""

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.query_params.get("token")
        if token is not None and not _allowed(request, given, token):
            return JSONResponse({"detail": "this page needs the token that `paraclip ui` printed"}, 401)
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


def _queries(engine: SearchEngine, asked: SearchRequest, heads: Heads | None) -> dict[str, list[Query]]:
    """What each side ranks by: the query and, if there is one, its paraphrase."""
    alphas = {"base": BASE, "tuned": asked.alpha} if engine.repaired else {"base": BASE}
    texts = [asked.query, *filter(str.strip, [asked.paraphrased_query])]
    sides = {name: [Query(alpha, [text]) for text in texts] for name, alpha in alphas.items()}
    groups = [] if heads is None else [heads.group(text) for text in texts]
    if groups and groups[0] is not None:
        sides["expanded"] = [Query([*alphas.values()][-1], group) for group in groups if group is not None]
    return sides


def _answer(engine: SearchEngine, catalogue: Catalogue, asked: SearchRequest, heads: Heads | None) -> dict[str, Any]:
    """Answer one request with every side; images like another are the same by both models."""
    count = max(asked.count, DEPTH)
    if asked.like is not None:
        if (row := catalogue.rows.get(asked.like)) is None:
            name = asked.like[:200]
            raise HTTPException(404, f"the index has no image {name!r}; it may be gone since the page was loaded")
        return {"images": {"hits": _hits(catalogue, engine.like(row, count), asked.count)}}
    sides = _queries(engine, asked, heads)
    rankings = iter(engine.search([query for queries in sides.values() for query in queries], count))
    answer = dict[str, dict[str, Any]]()
    for name, queries in sides.items():
        ranking, *paraphrased = islice(rankings, len(queries))
        answer[name] = {"hits": _hits(catalogue, ranking, asked.count)}
        for paraphrased_ranking in paraphrased:
            answer[name] |= _agreement(ranking, paraphrased_ranking)
            answer[name]["paraphrased_hits"] = _hits(catalogue, paraphrased_ranking, asked.count)
    return answer


def _hits(catalogue: Catalogue, ranking: Ranking, count: int) -> list[dict[str, Any]]:
    return [
        {"row": row, "image_id": catalogue.ids[row], "score": round(float(score), 4), "caption": catalogue.caption(row)}
        for row, score in zip(ranking.rows[:count].tolist(), ranking.scores, strict=False)
    ]


def _agreement(ranking: Ranking, paraphrased: Ranking) -> dict[str, Any]:
    """How far two rankings agree, in percent, and the rows that both have."""
    depth = min(DEPTH, len(ranking.rows))
    lists = ranking.rows[None, :depth], paraphrased.rows[None, :depth]
    shared = set(paraphrased.rows[:depth].tolist())
    return {
        "depth": depth,
        "ao": round(100 * float(average_overlap(*lists, k=depth)[0]), 1),
        "js": round(100 * float(jaccard(*lists, k=depth)[0]), 1),
        "shared": [row for row in ranking.rows[:depth].tolist() if row in shared],
    }


def _allowed(request: Request, given: str | None, token: str) -> bool:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    offered = (given, bearer, request.cookies.get(COOKIE))
    return any(secrets.compare_digest(text.encode(), token.encode()) for text in offered if text)


def _file(path: Path, kind: str, headers: dict[str, str] | None = None) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        """A page."""
        return FileResponse(path, media_type=kind, headers=headers)

    return send
