"""/tokenize and /detokenize: text to token ids and back, as the model would be given it."""

from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from quire.errors import InvalidRequest
from quire_tokenizer.conversation import Conversation
from quire_tokenizer.openai.body import Text, TokenId
from quire_tokenizer.openai.desk import Desk
from quire_tokenizer.openai.message import Message
from quire_tokenizer.openai.schema import body_of
from quire_tokenizer.openai.tool import Tool


class TokenizeRequest(BaseModel):
    """A text, or a conversation."""

    model_config = ConfigDict(extra="allow")

    model: Text = ""
    prompt: Text | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None
    """Default: for a text, not for a conversation."""
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None

    def conversation(self) -> Conversation:
        """The messages and how to render them. Raises `InvalidRequest`."""
        variables = dict(self.chat_template_kwargs or {})
        if self.tools:
            variables["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return Conversation(
            messages=[
                message.for_template(f"messages[{number}]")
                for number, message in enumerate(self.messages or ())
            ],
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=variables,
        )


class DetokenizeRequest(BaseModel):
    """Token ids."""

    model_config = ConfigDict(extra="allow")

    model: Text = ""
    tokens: Annotated[list[TokenId], Field()]


BODIES = (TokenizeRequest, DetokenizeRequest)


def add_tokenization_routes(app: FastAPI, desk: Desk) -> None:
    """Adds both."""

    @app.post("/tokenize", openapi_extra=body_of(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The token ids of a text or a conversation."""
        return await _tokenize(desk, await desk.read(request, TokenizeRequest))

    @app.post("/detokenize", openapi_extra=body_of(DetokenizeRequest))
    async def detokenize(request: Request) -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """The text of token ids."""
        body = await desk.read(request, DetokenizeRequest)
        codec = desk.shelf.find(body.model).codec
        return {"prompt": codec.decode(body.tokens, skip_special_tokens=False)}


async def _tokenize(desk: Desk, body: TokenizeRequest) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("prompt and messages: exactly one of them must be given", field="prompt")
    model = desk.shelf.find(body.model)
    adds = body.add_special_tokens
    if body.prompt is not None:
        text, adds = body.prompt, adds is not False
    else:
        text, adds = body.conversation().render(model.codec.chat_template), adds is True
    tokens = await model.encoder.encode(text, add_special_tokens=adds)
    strings = [model.codec.token_text(token) for token in tokens] if body.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": desk.max_model_len(body.model),
        "tokens": tokens,
        "token_strs": strings,
    }
