"""Flags of the services: names, defaults and refusals."""

import pytest

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.config.flag import parse
from quire.errors import ConfigError


def test_flags_have_vllms_names() -> None:
    flags = (
        "--model m --served-model-name a,b --dtype float32 --load-format dummy --revision r --download-dir d "
    )
    flags += "--max-model-len 64 --max-num-seqs 4 --max-num-batched-tokens 8 --block-size 8 "
    flags += "--num-gpu-blocks-override 9 --seed 3"
    config = parse(WorkerConfig, flags.split(), "worker")
    assert config.served_model_name == ("a", "b")
    assert (config.max_model_len, config.num_gpu_blocks_override, config.seed) == (64, 9, 3)
    assert config.step_token_limit == 8
    assert (
        parse(WorkerConfig, ["--tensor-parallel-size", "1", "--swap-space", "0"], "worker") == WorkerConfig()
    )
    assert parse(SchedulerConfig, ["--no-enable-prefix-caching"], "s").enable_prefix_caching is False
    assert parse(TokenizerConfig, ["--scheduler", "a:1,dns:///b:2"], "t").scheduler == ("a:1", "dns:///b:2")


@pytest.mark.parametrize(
    ("config_type", "flags", "message"),
    [
        (WorkerConfig, "--block-size 0", "--block-size=0: must be at least 1"),
        (WorkerConfig, "--max-num-seqs 8 --max-num-batched-tokens 4", "=4: must be at least --max-num-seqs=8"),
        (WorkerConfig, "--gpu-memory-utilization 1.5", "--gpu-memory-utilization=1.5"),
        (WorkerConfig, "--dtype int3", "--dtype"),
        (WorkerConfig, "--no-such-flag", "--no-such-flag"),
        (SchedulerConfig, "--pipeline-depth 0", "--pipeline-depth=0: must be at least 1"),
        (SchedulerConfig, "--max-num-prefill-tokens-while-decoding 0", "-decoding=0: must be at least 1"),
        (SchedulerConfig, "--liveness-timeout-ms 10", "--liveness-timeout-ms=10: must be longer"),
        (WorkerConfig, "--tensor-parallel-size 2", "--tensor-parallel-size=2: not built yet: tensor parallelism"),
        (WorkerConfig, "--quantization awq", "--quantization=awq: not built yet: quantization"),
        (WorkerConfig, "--enable-lora", "--enable-lora: not built yet: LoRA adapters"),
        (SchedulerConfig, "--speculative-model x", "--speculative-model=x: not built yet: speculative decoding"),
        (SchedulerConfig, "--swap-space 4", "--swap-space=4: not built yet: swapping KV blocks to host memory"),
        (TokenizerConfig, "--enable-lora", "--enable-lora: not built yet: LoRA adapters"),
        (TokenizerConfig, "--max-message-bytes 0", "--max-message-bytes=0: must be at least 1"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_flag(config_type: type, flags: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(config_type, flags.split(), "program")
    assert message in caught.value.message
