"""TokenizerService: text to token ids and back, with no scheduler needed."""

import grpc

from quire.errors import InvalidRequest, QuireError
from quire.rpc.status import abort_with
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from quire_tokenizer.conversation import Conversation
from quire_tokenizer.engine import GenerationEngine
from quire_tokenizer.model_shelf import ModelShelf


class TokenizerService(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Tokenize, Detokenize and ApplyChatTemplate."""

    def __init__(self, shelf: ModelShelf, engine: GenerationEngine) -> None:
        self._shelf = shelf
        self._engine = engine

    async def Tokenize(
        self, request: tokenizer_pb2.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.TokenizeResponse:
        """Encodes text."""
        try:
            if not request.text:
                raise InvalidRequest("text is empty: it needs at least one character", field="text")
            adds_special = request.add_special_tokens if request.HasField("add_special_tokens") else True
            model = self._shelf.find(request.model)
            token_ids = await model.encoder.encode(request.text, add_special_tokens=adds_special)
        except QuireError as error:
            await abort_with(context, error)
        return tokenizer_pb2.TokenizeResponse(
            token_ids=token_ids, max_model_len=self._max_model_len(request.model)
        )

    async def Detokenize(
        self, request: tokenizer_pb2.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.DetokenizeResponse:
        """Decodes token ids."""
        try:
            codec = self._shelf.find(request.model).codec
            text = codec.decode(request.token_ids, skip_special_tokens=request.skip_special_tokens)
        except QuireError as error:
            await abort_with(context, error)
        return tokenizer_pb2.DetokenizeResponse(text=text)

    async def ApplyChatTemplate(
        self, request: tokenizer_pb2.ApplyChatTemplateRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.ApplyChatTemplateResponse:
        """Renders and encodes a conversation."""
        try:
            model = self._shelf.find(request.model)
            text = Conversation.from_proto(request.chat).render(model.codec.chat_template)
            token_ids = await model.encoder.encode(text, add_special_tokens=False)
        except QuireError as error:
            await abort_with(context, error)
        return tokenizer_pb2.ApplyChatTemplateResponse(text=text, token_ids=token_ids)

    def _max_model_len(self, name: str) -> int:
        lengths = [card.max_model_len for card in self._engine.models() if not name or card.id == name]
        return max(lengths, default=0)
