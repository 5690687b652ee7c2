"""Settings of the scheduler service."""

from dataclasses import dataclass

from quire.config.flag import require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The scheduler service: batches requests and owns the KV blocks of its workers."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    grpc_port: int = setting(50052, "Port of the gRPC services; 0 takes any free one.")
    data_port: int = setting(0, "Port of the ZeroMQ data plane; 0 takes any free one.")
    advertise_host: str | None = setting(
        None, "Host under which workers reach the data plane, if not --host."
    )
    scheduling_policy: str = setting(
        "fcfs", "Order in which requests are served.", choices=("fcfs", "priority")
    )
    enable_prefix_caching: bool = setting(
        True, "Keep the KV blocks of ended requests for prompts that share them."
    )
    pipeline_depth: int = setting(2, "Steps in flight per worker group; 1 is lockstep.")
    max_num_requests: int = setting(4096, "Most live requests; one more is refused with RESOURCE_EXHAUSTED.")
    max_num_seqs: int | None = setting(
        None, "Most sequences that run at once; default: what the worker offers."
    )
    max_num_batched_tokens: int | None = setting(
        None, "Most tokens per step; default: what the worker offers."
    )
    max_num_prefill_tokens_while_decoding: int | None = setting(
        None,
        "Most prompt tokens of a step in which others decode; a quarter of the waiting prompt tokens if that is more.",
    )
    heartbeat_interval_ms: int = setting(1000, "How often a worker must give a sign of life.")
    liveness_timeout_ms: int = setting(5000, "Silence after which a worker is dropped.")
    drain_timeout_ms: int = setting(
        30_000, "Longest wait for running requests when the process is told to stop."
    )

    def __post_init__(self) -> None:
        for name in ("pipeline_depth", "max_num_requests", "heartbeat_interval_ms"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_num_prefill_tokens_while_decoding"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(
            self.liveness_timeout_ms > self.heartbeat_interval_ms,
            "liveness_timeout_ms",
            self.liveness_timeout_ms,
            f"must be longer than --heartbeat-interval-ms={self.heartbeat_interval_ms}",
        )
