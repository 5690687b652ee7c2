"""The served model's tokenizer from afar, with the names of a Hugging Face tokenizer. Knows no vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

from quire.background import BackgroundLoop
from quire.engine_client import EngineClient
from quire.inputs import Message, chat_prompt


class AsyncTokenizer:
    """Every call asks the server's TokenizerService."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return await self._client.tokenize(text, add_special_tokens=add_special_tokens)

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return await self._client.detokenize(list(token_ids), skip_special_tokens=skip_special_tokens)

    async def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str | list[int]:
        """A conversation as the model sees it, as token ids or as text."""
        chat = chat_prompt(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )
        text, token_ids = await self._client.render(chat)
        return token_ids if tokenize else text


class Tokenizer:
    """The same for callers without an event loop."""

    def __init__(self, tokenizer: AsyncTokenizer, loop: BackgroundLoop) -> None:
        self._tokenizer = tokenizer
        self._loop = loop

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._loop.call(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return self._loop.call(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> str | list[int]:
        """A conversation as the model sees it; `options` are those of `AsyncTokenizer.apply_chat_template`."""
        return self._loop.call(self._tokenizer.apply_chat_template(messages, **options))
