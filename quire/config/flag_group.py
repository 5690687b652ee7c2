"""Under which heading of `--help` a flag stands. Knows the names of settings and nothing else of them."""

import argparse
from typing import Any

GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        "model",
        "served_model_name",
        "tokenizer",
        "revision",
        "download_dir",
        "load_format",
        "dtype",
        "seed",
        "chat_template",
        "trust_request_chat_template",
        "enable_auto_tool_choice",
        "tool_call_parser",
        "reasoning_parser",
    ),
    "addresses and processes": (
        "host",
        "port",
        "http",
        "grpc_port",
        "data_port",
        "advertise_host",
        "scheduler",
        "reuse_port",
        "group_name",
        "tokenizer_replicas",
        "heartbeat_interval_ms",
        "liveness_timeout_ms",
        "drain_timeout_ms",
    ),
    "who may call, and what": (
        "api_key",
        "api_key_file",
        "ssl_certfile",
        "ssl_keyfile",
        "root_path",
        "middleware",
        "allowed_origins",
        "allowed_methods",
        "allowed_headers",
        "allow_credentials",
        "max_message_bytes",
        "max_header_bytes",
        "http_read_timeout_ms",
        "max_json_depth",
        "max_num_prompts",
        "max_num_requests",
    ),
    "device and KV cache": (
        "device",
        "num_threads",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "kv_cache_dtype",
        "num_gpu_blocks_override",
        "block_size",
        "enable_prefix_caching",
        "enforce_eager",
    ),
    "batching": (
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_num_prefill_tokens_while_decoding",
        "scheduling_policy",
        "pipeline_depth",
    ),
}
"""Headings in the order in which they are shown, each with its settings."""

_HEADING_OF = {name: heading for heading, names in GROUPS.items() for name in names}


def group_of(parser: argparse.ArgumentParser, name: str) -> Any:
    """The group of `parser` that the flag of a setting belongs to; the parser itself for one without a heading."""
    heading = _HEADING_OF.get(name)
    if heading is None:
        return parser
    groups = {group.title: group for group in parser._action_groups}  # pyright: ignore[reportPrivateUsage]
    for title in GROUPS:
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
    return groups[heading]
