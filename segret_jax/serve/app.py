"""The application: the page, its files, and the HTTP interface. It reads no file by a request."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from segret_jax.data.class_table import ClassTable
from segret_jax.data.names import SYNTHETIC
from segret_jax.pages import page
from segret_jax.serve import answers, uploads
from segret_jax.serve.answers import Segmenting
from segret_jax.serve.guard import Guard
from segret_jax.serve.limits import Limits, RefusedError
from segret_jax.serve.openapi import FORMAT_ROWS, interface
from segret_jax.serve.sample_images import sample_images
from segret_jax.serve.work import WorkQueue, unless_gone

KINDS = {".css": "text/css", ".js": "text/javascript", ".jpg": "image/jpeg"}
GONE = 499  # nobody reads it


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model that is served."""

    name: str
    classes: ClassTable
    segment: Segmenting


def create_app(
    served: Served, limits: Limits, *, hosts: Collection[str] | None = None
) -> Starlette:
    """Return the application.

    Args:
        served: The model.
        limits: What is accepted.
        hosts: The names by which it may be called; None: any.
    """
    queue = WorkQueue(limits)
    schema = interface(served.name, limits)
    samples = sample_images(served.classes.name)
    status = {
        "model": served.name,
        "classes": [
            {"id": i, "name": name, "color": f"#{bytes(color).hex()}"}
            for i, (name, color) in enumerate(
                zip(served.classes.class_names, served.classes.colors, strict=True)
            )
        ],
        "limits": asdict(limits),
    }
    home = page.render("serve.html", model=served.name, summary=served.classes.summary,
                       limits=limits, samples=[*samples],
                       generated=served.classes.name == SYNTHETIC)  # fmt: skip

    async def predict(request: Request) -> Response:
        return await _predict(request, queue, served.segment, limits)

    def documentation(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(
            page.render("serve_interface.html", schema=schema, base=base, formats=FORMAT_ROWS)
        )

    routes = [
        Route("/", lambda _: HTMLResponse(home)),
        Route("/docs", documentation),
        Route("/openapi.json", lambda _: JSONResponse(schema)),
        Route("/status", lambda _: JSONResponse(status | {"waiting": len(queue)})),
        Route("/static/{name}", _files(_static_files())),
        Route("/samples/{name}", _files(samples)),
        Route("/predict", predict, methods=["POST"]),
    ]
    handlers: Any = {
        RefusedError: _refused,
        HTTPException: _not_served,
        ClientDisconnect: _gone,
        Exception: _failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Guard, hosts=hosts)
    app.state.queue = queue
    return app


async def _predict(
    request: Request, queue: WorkQueue, segment: Segmenting, limits: Limits
) -> Response:
    wish = answers.read_wish(request.query_params)
    client = request.client.host if request.client else "unknown"
    with queue.admit(client) as entry:
        entry.content = await uploads.read_body(request, limits)
        begun = time.perf_counter()
        await uploads.check_header(entry.content, limits)
        work = queue.run(lambda one: answers.answer(one.content, wish, segment), entry)
        result = await unless_gone(request, work)
        queued = time.perf_counter() - begun - result.seconds
    timing = f"queue;dur={1000 * queued:.0f}, model;dur={1000 * result.seconds:.0f}"
    return Response(result.content, media_type=result.media_type, headers={"server-timing": timing})


def _static_files() -> dict[str, bytes]:
    names = ("style.css", "serve.css", "serve.js", "serve_stage.js")
    return {name: (page.FOLDER / name).read_bytes() for name in names}


def _files(files: Mapping[str, bytes]) -> Callable[[Request], Response]:
    """Serve files from memory: whatever a request names, nothing is looked for on the disk."""

    def serve(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=KINDS[Path(name).suffix])

    return serve


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers=headers)


def _refused(_: Request, error: Any) -> Response:
    retry = {"retry-after": str(error.retry_after)} if error.retry_after else None
    return _error(error.status, str(error), retry)


def _not_served(request: Request, error: Any) -> Response:
    path = request.url.path[:100]
    message = f"{request.method} {path} is not served: see /docs"
    return _error(error.status_code, message, error.headers)


def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)


def _failed(_: Request, __: Exception) -> Response:
    return _error(500, "the server failed at this request; its output tells why")
