"""HTTP requests made from the server's OpenAPI document: good ones, and ones broken in every way that a schema rules out.

Knows the document and no server.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

from tests.fuzz.value import TEXTS, TOKENS, any_value, mutated

_MAX_DEPTH = 6
_WRONG_VALUE = 0.06
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
_TYPES = (
    "application/json",
    "application/json",
    "text/plain",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "",
)


@dataclass(frozen=True, slots=True)
class HttpCase:
    """One request, as the bytes that are sent."""

    raw: bytes
    about: str


class HttpCases:
    """An endless source of requests for one server."""

    def __init__(self, document: dict[str, Any], model: str, host: str, draw: random.Random) -> None:
        self._document = document
        self._model = model
        self._host = host
        self._draw = draw
        self._operations = [
            (method.upper(), path, operation)
            for path, item in document["paths"].items()
            for method, operation in item.items()
        ]
        self._with_body = [each for each in self._operations if "requestBody" in each[2]]
        assert len(self._with_body) >= 2, "the document describes no bodies"

    def next(self) -> HttpCase:
        """One more."""
        if self._draw.random() < 0.05:
            return self._without_body()
        method, path, operation = self._draw.choice(self._with_body)
        content = operation["requestBody"]["content"]
        schema = next(iter(content.values()))["schema"]
        body = self._object(self._resolved(schema), depth=0)
        if isinstance(body, dict):
            self._tame(path, body)
        raw = self._encoded(body)
        content_type = "application/json" if self._draw.random() < 0.95 else self._draw.choice(_TYPES)
        return self._case(method, path, raw, content_type)

    def _without_body(self) -> HttpCase:
        method, path, _ = self._draw.choice(self._operations)
        if self._draw.random() < 0.5:
            method = self._draw.choice(_METHODS)
        if self._draw.random() < 0.3:
            path = "/" + self._draw.choice(
                ("v1/models/%00", "v1/models/x", "v1", "%2e%2e/x", "v1//completions", "docs", "?" * 9)
            )
        path = path.replace("{name}", self._draw.choice((self._model, "x", "%F0%9F")))
        return self._case(method, path, b"", "")

    def _case(self, method: str, path: str, body: bytes, content_type: str) -> HttpCase:
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
        if content_type:
            head += f"content-type: {content_type}\r\n"
        if self._draw.random() < 0.02:
            head += f"x-long: {'y' * self._draw.choice((100, 70_000))}\r\n"
        return HttpCase(head.encode() + b"\r\n" + body, f"{method} {path} {body[:2000]!r}")

    def _encoded(self, body: Any) -> bytes:
        """JSON mostly; sometimes cut, bent, deep beyond measure, or in another encoding."""
        raw = json.dumps(body).encode()
        match self._draw.randrange(40):
            case 0 | 1 | 2:
                return mutated(self._draw, raw)
            case 3:
                return raw[: self._draw.randrange(len(raw) + 1)]
            case 4:
                return b'{"prompt":' + b"[" * 5000
            case 5:
                return json.dumps(body, ensure_ascii=False).encode("utf-16", "surrogatepass")
            case 6:
                return json.dumps(any_value(self._draw)).encode()
            case _:
                return raw

    def _tame(self, path: str, body: dict[str, Any]) -> None:
        """Makes most bodies ones that the server takes: a boundary is reached only past what comes before it."""
        draw = self._draw
        if draw.random() < 0.93:
            body["model"] = self._model
        if draw.random() < 0.8:
            # Most fields at their defaults, so that one wrong field is the only one.
            for name in [each for each in body if each not in ("model", "prompt", "messages")]:
                if draw.random() < 0.75:
                    del body[name]
        if "completions" in path and draw.random() < 0.85:
            body["max_tokens"] = draw.randint(1, 12)
            body.pop("max_completion_tokens", None)
        if path.endswith("/chat/completions") and draw.random() < 0.85:
            body["messages"] = [
                {
                    "role": draw.choice(("system", "user", "assistant", "tool", "developer")),
                    "content": draw.choice(TEXTS[:14]),
                }
                for _ in range(draw.randint(1, 3))
            ]
        elif path.endswith("/completions") and draw.random() < 0.85:
            body["prompt"] = draw.choice(
                [*TEXTS[:14], [draw.choice(TOKENS) for _ in range(4)], ["a", "b"], [[1, 2], [3]]]
            )

    def _value(self, schema: dict[str, Any], depth: int) -> Any:
        draw = self._draw
        if draw.random() < _WRONG_VALUE or depth > _MAX_DEPTH:
            return any_value(draw)
        schema = self._resolved(schema)
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                return self._value(draw.choice(schema[union]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw.choice(schema["enum"])
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        draw = self._draw
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                items = schema.get("items", {})
                return [self._value(items, depth + 1) for _ in range(draw.choice((0, 1, 1, 2, 5)))]
            case "string":
                return draw.choice(TEXTS)
            case "integer":
                return draw.choice((schema.get("minimum", 0), schema.get("maximum", 5), 1, 2, 3, *TOKENS))
            case "number":
                return draw.choice(
                    (schema.get("minimum", 0.0), schema.get("maximum", 2.0), 0.3, 1.0, -2.0, 2.0001)
                )
            case "boolean":
                return draw.random() < 0.5
            case "null":
                return None
            case _:
                return any_value(draw)

    def _object(self, schema: dict[str, Any], depth: int) -> Any:
        draw = self._draw
        required = set(schema.get("required", ()))
        body = {
            name: self._value(each, depth + 1)
            for name, each in schema.get("properties", {}).items()
            if draw.random() < (0.95 if name in required else 0.3)
        }
        if draw.random() < 0.1:
            body[draw.choice(("unknown", "", "model\x00", "__class__"))] = any_value(draw)
        return body

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = self._document["components"]["schemas"][name]
        return schema
