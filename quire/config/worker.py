"""Settings of a worker process."""

from dataclasses import dataclass

from quire.assets import shipped_model_path
from quire.config.flag import require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """A worker: holds the model and the KV cache of one device and executes the scheduler's plans."""

    scheduler: str = setting("127.0.0.1:50052", "Address of the scheduler, host:port.")
    host: str = setting("127.0.0.1", "Address to listen on.")
    grpc_port: int = setting(0, "Port of the WorkerService; 0 takes any free one.")
    group_name: str = setting("", "Worker group to join; default: one of its own.")
    model: str = setting(str(shipped_model_path()), "Model directory or hub id.")
    served_model_name: tuple[str, ...] = setting(
        (), "Names under which the model is served; default: its --model."
    )
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.")
    download_dir: str | None = setting(None, "Directory for downloaded models.")
    load_format: str = setting("auto", "How weights are obtained.", choices=("auto", "safetensors", "dummy"))
    dtype: str = setting("auto", "Type of weights.", choices=("auto", "float32", "bfloat16", "float16"))
    device: str = setting("auto", "Device to run on.", choices=("auto", "cpu", "cuda"))
    max_model_len: int | None = setting(
        None, "Longest context in tokens; default: what the model was made for."
    )
    max_num_seqs: int = setting(256, "Most sequences that run at once.")
    max_num_batched_tokens: int | None = setting(
        None, "Most tokens per step; default: 2048, or --max-num-seqs if more."
    )
    block_size: int = setting(16, "Tokens per KV block.")
    kv_cache_dtype: str = setting(
        "auto",
        "Type of the KV cache; auto: that of the weights. 8 bits hold twice as many tokens.",
        choices=("auto", "bfloat16", "fp8", "fp8_e4m3"),
    )
    num_gpu_blocks_override: int | None = setting(None, "Number of KV blocks, instead of sizing by memory.")
    gpu_memory_utilization: float = setting(0.9, "Share of the GPU's memory to use.")
    kv_cache_memory_bytes: int | None = setting(
        None, "Memory for the KV cache in bytes, instead of sizing by memory."
    )
    enforce_eager: bool = setting(
        False, "Launch every kernel by itself instead of capturing steps as CUDA graphs."
    )
    seed: int = setting(0, "Seed of --load-format dummy.")
    num_threads: int | None = setting(None, "Threads of CPU kernels; default: all cores.")

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "block_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("max_model_len", "num_gpu_blocks_override", "num_threads", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(
            0 < self.gpu_memory_utilization <= 1,
            "gpu_memory_utilization",
            self.gpu_memory_utilization,
            "must be above 0 and at most 1",
        )
        if self.max_num_batched_tokens is not None:
            require(
                self.max_num_batched_tokens >= self.max_num_seqs,
                "max_num_batched_tokens",
                self.max_num_batched_tokens,
                f"must be at least --max-num-seqs={self.max_num_seqs}, so that every sequence advances in every step",
            )

    @property
    def step_token_limit(self) -> int:
        """Most tokens per step, resolved."""
        return self.max_num_batched_tokens or max(2048, self.max_num_seqs)
