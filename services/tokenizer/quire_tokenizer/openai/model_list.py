"""/v1/models: what can be named in a request, over all schedulers that this process is attached to."""

import time
from typing import Any

from fastapi import FastAPI

from quire.errors import ModelNotFound
from quire.v1 import generation_pb2
from quire_tokenizer.openai.desk import Desk


def add_model_routes(app: FastAPI, desk: Desk) -> None:
    """Adds the list and its single entries."""
    created = int(time.time())

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The models served."""
        return {"object": "list", "data": [_entry(card, created) for card in desk.engine.models()]}

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """One model."""
        cards = {card.id: card for card in desk.engine.models()}
        if name not in cards:
            served = ", ".join(cards)
            raise ModelNotFound(f"model={name!r} is not served here; served: {served}", field="model")
        return _entry(cards[name], created)


def _entry(card: generation_pb2.ModelCard, created: int) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": created,
        "owned_by": "quire",
        "root": card.id,
        "parent": None,
        "max_model_len": card.max_model_len,
        "ready": card.ready,
    }
