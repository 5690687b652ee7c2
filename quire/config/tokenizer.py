"""Settings of a tokenizer process."""

from dataclasses import dataclass

from quire.assets import shipped_model_path
from quire.config.flag import require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer service: the front door, text in and text out."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    grpc_port: int = setting(50051, "Port of the gRPC services; 0 takes any free one.")
    reuse_port: bool = setting(
        False, "Share the port with other replicas on this machine; joined once a scheduler is ready."
    )
    scheduler: tuple[str, ...] = setting((), "Schedulers to attach to: host:port or dns:///host:port.")
    model: str = setting(str(shipped_model_path()), "Model directory or hub id whose tokenizer is used.")
    tokenizer: str | None = setting(None, "Directory or hub id of the tokenizer, if not --model.")
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.")
    download_dir: str | None = setting(None, "Directory for downloaded files.")
    served_model_name: tuple[str, ...] = setting(
        (), "Names under which the model is served; default: its --model."
    )
    max_message_bytes: int = setting(8 * 1024 * 1024, "Largest request in bytes.")
    max_num_requests: int = setting(4096, "Most live requests; one more is refused with RESOURCE_EXHAUSTED.")
    drain_timeout_ms: int = setting(30_000, "Longest wait for open streams when the process is told to stop.")

    def __post_init__(self) -> None:
        for name in ("max_message_bytes", "max_num_requests"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
