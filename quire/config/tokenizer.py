"""Settings of a tokenizer process."""

from dataclasses import dataclass

from quire.assets import shipped_model_path
from quire.config import vertex
from quire.config.flag import require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer service: the front door, text in and text out."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    grpc_port: int = setting(50051, "Port of the gRPC services; 0 takes any free one.")
    port: int = setting(
        vertex.http_port(),
        "Port of the OpenAI-compatible HTTP API; 0 takes any free one.",
        aliases=("--http-port",),
    )
    http: bool = setting(True, "Serve the OpenAI-compatible HTTP API.")
    reuse_port: bool = setting(
        False, "Share the ports with other replicas on this machine; joined once a scheduler is ready."
    )
    scheduler: tuple[str, ...] = setting((), "Schedulers to attach to: host:port or dns:///host:port.")
    model: str = setting(str(shipped_model_path()), "Model directory or hub id whose tokenizer is used.")
    tokenizer: str | None = setting(None, "Directory or hub id of the tokenizer, if not --model.")
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.")
    download_dir: str | None = setting(None, "Directory for downloaded files.")
    served_model_name: tuple[str, ...] = setting(
        (), "Names under which the model is served; default: its --model."
    )
    chat_template: str | None = setting(
        None, "File with a Jinja chat template, or the template itself; default: the model's."
    )
    trust_request_chat_template: bool = setting(False, "Let requests bring a chat template of their own.")
    api_key: tuple[str, ...] = setting(
        (), "Keys, one of which every call but a health check must bring; default: none is asked for."
    )
    api_key_file: str | None = setting(
        None, "File with a key on each line, and after a blank the tenant on whose behalf it speaks."
    )
    ssl_certfile: str | None = setting(None, "Certificate chain (PEM) with which gRPC and HTTP speak TLS.")
    ssl_keyfile: str | None = setting(None, "Private key (PEM) of --ssl-certfile, if not in it.")
    root_path: str = setting("", "Path under which a reverse proxy shows the HTTP API.")
    middleware: tuple[str, ...] = setting(
        (), "ASGI middleware of your own around the HTTP API, as module:name; the last is the outermost."
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "Origins whose pages may call the HTTP API (CORS), or *; default: none."
    )
    allow_credentials: bool = setting(False, "Let pages of --allowed-origins send credentials.")
    enable_auto_tool_choice: bool = setting(
        False, "Let the model decide to call tools; needs --tool-call-parser."
    )
    tool_call_parser: str | None = setting(None, "Format in which the model writes tool calls.")
    reasoning_parser: str | None = setting(None, "Format in which the model writes its reasoning.")
    max_message_bytes: int = setting(8 * 1024 * 1024, "Largest request in bytes, over gRPC and HTTP.")
    max_header_bytes: int = setting(64 * 1024, "Largest head of an HTTP request, in bytes.")
    http_read_timeout_ms: int = setting(
        60_000, "Longest wait for the whole of an HTTP request; a slower client is cut off."
    )
    max_json_depth: int = setting(64, "Deepest nesting of an HTTP request's body.")
    max_num_prompts: int = setting(1024, "Most prompts of one HTTP request.")
    max_num_requests: int = setting(4096, "Most live requests; one more is refused with RESOURCE_EXHAUSTED.")
    drain_timeout_ms: int = setting(30_000, "Longest wait for open streams when the process is told to stop.")

    def __post_init__(self) -> None:
        for name in (
            "max_message_bytes",
            "max_header_bytes",
            "http_read_timeout_ms",
            "max_json_depth",
            "max_num_prompts",
            "max_num_requests",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(
            self.ssl_keyfile is None or self.ssl_certfile is not None,
            "ssl_keyfile",
            self.ssl_keyfile,
            "needs --ssl-certfile",
        )
        require(
            not self.enable_auto_tool_choice or self.tool_call_parser is not None,
            "enable_auto_tool_choice",
            self.enable_auto_tool_choice,
            "needs --tool-call-parser",
        )
        for name in self.middleware:
            require(name.count(":") == 1, "middleware", name, "must be module:name")
