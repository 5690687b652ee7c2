"""The codecs of the models that this process serves: its own, and those of the schedulers it is attached to."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from quire.assets import default_served_model_names
from quire.config import TokenizerConfig
from quire.errors import ConfigError, ModelNotFound
from quire.v1 import scheduler_pb2
from quire_tokenizer.encoder import Encoder
from quire_tokenizer.text_codec import TextCodec, load_text_codec

logger = logging.getLogger(__name__)


class Model:
    """One model's text side."""

    def __init__(self, codec: TextCodec, executor: ThreadPoolExecutor) -> None:
        self.codec = codec
        self.encoder = Encoder(codec, executor)


class ModelShelf:
    """Codecs by served model name; loaded once, off the event loop where they come with a scheduler."""

    def __init__(self, config: TokenizerConfig, executor: ThreadPoolExecutor) -> None:
        self._config = config
        self._executor = executor
        source = config.tokenizer or config.model
        codec = load_text_codec(source, config.revision, config.download_dir)
        if config.chat_template is not None:
            codec.use_chat_template(config.chat_template)
        own = Model(codec, executor)
        self._own_names = default_served_model_names(config.model, config.served_model_name)
        self._by_source: dict[str, Model] = {config.model: own}
        self._by_name: dict[str, Model] = dict.fromkeys(self._own_names, own)
        self._loading: set[str] = set()

    def find(self, name: str) -> Model:
        """The model of a served name; an empty name means the process's own. Raises `ModelNotFound`."""
        model = self._by_name.get(name or self._own_names[0])
        if model is None:
            served = ", ".join(sorted(self._by_name))
            raise ModelNotFound(f"model={name!r} is not served here; served: {served}", field="model")
        return model

    def learn(self, state: scheduler_pb2.ServingState) -> None:
        """A scheduler serves a model: makes its codec available under its names."""
        names = list(state.served_model_names)
        if not names or all(name in self._by_name for name in names):
            return
        model = self._by_source.get(state.model)
        if model is not None:
            self._by_name.update(dict.fromkeys(names, model))
        elif state.model not in self._loading:
            self._loading.add(state.model)
            task = asyncio.get_running_loop().run_in_executor(
                self._executor, self._load, state.model, state.revision
            )
            task.add_done_callback(lambda done: self._shelve(state.model, names, done))

    def _load(self, source: str, revision: str) -> TextCodec:
        return load_text_codec(source, revision or None, self._config.download_dir)

    def _shelve(self, source: str, names: list[str], done: "asyncio.Future[TextCodec]") -> None:
        self._loading.discard(source)
        try:
            model = self._by_source[source] = Model(done.result(), self._executor)
        except ConfigError as error:
            logger.error(
                "a scheduler's model has no tokenizer here", extra={"model": source, "why": error.message}
            )
            return
        self._by_name.update(dict.fromkeys(names, model))
