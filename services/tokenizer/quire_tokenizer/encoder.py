"""Encoding off the event loop: texts that wait are encoded together, on a thread that holds no lock.

Bounded: when too many texts wait, the next one is refused with a retry delay instead of being queued.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from quire.errors import Overloaded
from quire_tokenizer.text_codec import TextCodec

_MAX_WAITING = 4096
_MAX_BATCH = 64
_RETRY_AFTER_MS = 500

_Job = tuple[str, bool, "asyncio.Future[list[int]]"]


class Encoder:
    """Encodes for one codec."""

    def __init__(self, codec: TextCodec, executor: ThreadPoolExecutor) -> None:
        self._codec = codec
        self._executor = executor
        self._waiting: list[_Job] = []
        self._task: asyncio.Task[None] | None = None

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of the text. Raises `Overloaded`."""
        if len(self._waiting) >= _MAX_WAITING:
            raise Overloaded(f"{_MAX_WAITING} texts wait to be encoded", retry_after_ms=_RETRY_AFTER_MS)
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, add_special_tokens, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            adds_special = self._waiting[0][1]
            batch = [job for job in self._waiting[:_MAX_BATCH] if job[1] is adds_special]
            taken = {id(job) for job in batch}
            self._waiting = [job for job in self._waiting if id(job) not in taken]
            texts = [text for text, _special, _future in batch]
            try:
                encoded = await loop.run_in_executor(self._executor, self._encode, texts, adds_special)
            except Exception as error:  # noqa: BLE001 — the waiting clients must hear of whatever went wrong
                for _text, _special, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_text, _special, future), token_ids in zip(batch, encoded, strict=True):
                if not future.done():
                    future.set_result(token_ids)

    def _encode(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        return self._codec.encode_batch(texts, add_special_tokens=add_special_tokens)
