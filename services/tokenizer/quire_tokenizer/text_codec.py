"""Text to token ids and back for one model, over the `tokenizers` library. Knows no request and no event loop."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from quire.errors import ConfigError, InvalidRequest
from quire.model_files import model_directory, read_json
from quire.sampling_params import ModelDefaults
from quire_tokenizer.chat_template import ChatTemplate, load_chat_template, read_chat_template
from quire_tokenizer.detokenizer import Detokenizer, DetokenizerFactory

_FILES = ("tokenizer*", "*.jinja", "generation_config.json", "config.json", "special_tokens_map.json")
"""Tokenizer, chat template and default sampling; never weights."""


class TextCodec:
    """A model's tokenizer, chat template and default sampling."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None = None,
        defaults: ModelDefaults | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._detokenizers = DetokenizerFactory(tokenizer)
        self.chat_template = chat_template
        self.defaults = defaults or ModelDefaults()
        # Ids may have holes: the number of tokens is not the bound.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def use_chat_template(self, file_or_source: str) -> None:
        """Takes another chat template than the model's own. Raises `ConfigError`."""
        source = read_chat_template(file_or_source)
        self.chat_template = (self.chat_template or ChatTemplate("", {})).with_source(source)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text; releases the GIL while it works."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids. Raises `InvalidRequest` for an id outside the vocabulary."""
        self.check_token_ids(token_ids, "token_ids")
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def check_token_ids(self, token_ids: Sequence[int], field: str) -> None:
        """Raises `InvalidRequest` for an id that the tokenizer does not know."""
        largest = max(token_ids, default=0)
        if largest >= self.vocab_size:
            raise InvalidRequest(
                f"{field} holds token id {largest}: ids must be below the vocabulary size {self.vocab_size}",
                field=field,
            )

    def detokenizer(
        self, *, skip_special_tokens: bool, spaces_between_special_tokens: bool = True
    ) -> Detokenizer:
        """A fresh incremental detokenizer."""
        return self._detokenizers.new(
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )

    def token_text(self, token_id: int) -> str:
        """The text of one token alone."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


def load_text_codec(model: str, revision: str | None, download_dir: str | None) -> TextCodec:
    """The codec of a model directory or hub id. Raises `ConfigError`."""
    directory = model_directory(model, revision, download_dir, _FILES)
    config = read_json(directory / "tokenizer_config.json")
    return TextCodec(
        _load_tokenizer(directory),
        load_chat_template(directory, config),
        ModelDefaults.from_generation_config(read_json(directory / "generation_config.json")),
    )


def _load_tokenizer(directory: Path) -> Tokenizer:
    file = directory / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    try:
        from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"--tokenizer={directory}: it has no tokenizer.json; with the transformers package installed, other "
            "tokenizer files are converted at start",
            field="tokenizer",
        ) from error
    return AutoTokenizer.from_pretrained(directory).backend_tokenizer
