"""EngineArgs: the names of `quire serve`, checked before anything starts."""

import argparse
from typing import Any

import pytest

from quire import AsyncEngineArgs, EngineArgs
from quire.errors import ConfigError
from quire.rpc.tls import ClientTls


def test_arguments_become_the_options_of_a_stack_on_a_free_port() -> None:
    options = EngineArgs(
        "/models/small",
        max_model_len=128,
        enforce_eager=True,
        enable_prefix_caching=False,
        served_model_name=["a", "b"],
    ).stack_options
    assert options is not None
    assert (options.model, options.max_model_len, options.grpc_port) == ("/models/small", 128, 0)
    assert options.enforce_eager is True
    assert options.enable_prefix_caching is False
    assert options.served_model_name == ("a", "b")


def test_none_and_what_there_is_anyway_are_no_settings() -> None:
    options = EngineArgs(max_model_len=None, tensor_parallel_size=1, enable_lora=False).stack_options
    assert options is not None
    assert options.max_model_len is None


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"max_modell_len": 5}, "max_modell_len", "did you mean max_model_len"),
        ({"max_num_seqs": "many"}, "max_num_seqs", "invalid int value"),
        ({"max_num_seqs": 0}, "max_num_seqs", "must be at least 1"),
        ({"dtype": "float8"}, "dtype", "invalid choice"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size", "not built yet"),
        ({"enable_lora": True}, "enable_lora", "not built yet"),
        ({"reuse_port": True}, "reuse_port", "no such argument"),
        ({"tls": True}, "tls", "needs address"),
        ({"api_key_file": "/keys"}, "api_key_file", "needs api_key"),
        ({"address": "host:1", "max_num_seqs": 4}, "max_num_seqs", "running stack"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        EngineArgs(**arguments)
    assert refused.value.field == field


def test_a_program_of_ones_own_takes_the_flags_of_an_engine_beside_its_own() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    AsyncEngineArgs.add_cli_args(parser)
    read = parser.parse_args(
        ["--port", "9", "--model", "/models/small", "--no-enable-prefix-caching", "--max-num-seqs=3"]
    )
    args = AsyncEngineArgs.from_cli_args(read)
    assert (read.host, read.port) == ("0.0.0.0", 9)
    assert args.model == "/models/small"
    assert args.engine_args == {"enable_prefix_caching": False, "max_num_seqs": 3}


def test_an_address_makes_model_the_name_of_a_served_one() -> None:
    args = EngineArgs("chat", address="dns:///quire.internal:50051", api_key="secret", tls=True)
    assert args.stack_options is None
    connection = args.connection("dns:///quire.internal:50051")
    assert (connection.model, connection.api_key, connection.tls) == ("chat", "secret", ClientTls())
