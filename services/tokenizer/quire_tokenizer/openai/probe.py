"""Routes that load balancers and platforms ask whether to send requests here. They need no key.

`/health` says that the process lives; the others that a model can be served now. Killing a process because its
scheduler is away would kill its requests.
"""

from fastapi import FastAPI
from starlette.responses import Response

from quire.config import vertex
from quire.release import __version__
from quire_tokenizer.openai.desk import Desk

OPEN_PATHS = ("/health", "/ready", "/ping")


def add_probe_routes(app: FastAPI, desk: Desk) -> None:
    """Adds them, and `/version`."""

    async def health() -> Response:
        """Whether the process lives."""
        return Response()

    async def ready() -> Response:
        """Whether a model can be served now."""
        return Response(status_code=200 if desk.engine.ready else 503)

    async def show_version() -> dict[str, str]:
        """The version of Quire."""
        return {"version": __version__}

    app.get("/health", response_class=Response)(health)
    for path in dict.fromkeys(("/ready", "/ping", vertex.health_route())):
        if path and path != "/health":
            app.get(path, response_class=Response)(ready)
    app.post("/ping", response_class=Response)(ready)
    app.get("/version")(show_version)
