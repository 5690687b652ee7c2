"""Locust: users who chat and complete, streaming, and read every token; the time to the first token is its own line.

locust -f benchmarks/load/locustfile.py --host http://127.0.0.1:8000 --headless -u 16 -r 16 -t 30s
"""

import json
from collections.abc import Iterator
from time import perf_counter

from locust import HttpUser, between, task
from locust.clients import ResponseContextManager

MAX_TOKENS = 16


class Reader(HttpUser):
    """Asks, reads to the end, and pauses for a moment."""

    wait_time = between(0.0, 0.1)

    @task(2)
    def complete(self) -> None:
        """A text to continue."""
        body = {"prompt": "ROMEO:\n", "ignore_eos": True}
        self._stream("/v1/completions", body)

    @task(1)
    def chat(self) -> None:
        """A question in a conversation."""
        body = {"messages": [{"role": "user", "content": "What light is that?"}], "ignore_eos": True}
        self._stream("/v1/chat/completions", body)

    def _stream(self, path: str, body: dict[str, object]) -> None:
        asked = {**body, "max_tokens": MAX_TOKENS, "stream": True, "stream_options": {"include_usage": True}}
        began = perf_counter()
        with self.client.post(path, json=asked, stream=True, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {response.text[:200]}")
                return
            self._read(path, response, began)

    def _read(self, path: str, response: ResponseContextManager, began: float) -> None:
        first_ms = None
        num_tokens = 0
        for event in _events(response):
            if first_ms is None and event.get("choices"):
                first_ms = 1000 * (perf_counter() - began)
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        if num_tokens != MAX_TOKENS or first_ms is None:
            response.failure(f"{num_tokens} tokens came, not {MAX_TOKENS}")
            return
        self.environment.events.request.fire(
            request_type="TTFT",
            name=path,
            response_time=first_ms,
            response_length=0,
            exception=None,
            context={},
        )


def _events(response: ResponseContextManager) -> Iterator[dict]:
    for line in response.iter_lines(chunk_size=None):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield json.loads(line[6:])
