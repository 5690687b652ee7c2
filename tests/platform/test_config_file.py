"""`--config`: a YAML file that holds the names of flags."""

from dataclasses import fields
from pathlib import Path

import pytest

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.config.flag import CommandParser, parse
from quire.config.flag_group import GROUPS
from quire.errors import ConfigError
from quire.launcher.option import add_stack_flags, parse_options


def _file(folder: Path, text: str) -> str:
    file = folder / "quire.yaml"
    file.write_text(text)
    return str(file)


def _stack(*argv: str) -> object:
    parser = CommandParser(prog="quire serve", description=None)
    add_stack_flags(parser)
    return parse_options(parser, argv)


def test_a_file_holds_the_names_of_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        "model: some/model\nmax_num_seqs: 8\nmax-model-len: 512\nenable_prefix_caching: false\n"
        "gpu_memory_utilization: 0.5\nserved_model_name: [a, b]\nrevision: null\nenforce-eager: true\n",
    )
    options = _stack("--config", file, "--max-num-seqs", "4", "--served-model-name=c")
    assert options.model == "some/model"
    assert (options.max_num_seqs, options.max_model_len) == (4, 512)
    assert (options.enable_prefix_caching, options.enforce_eager) == (False, True)
    assert options.served_model_name == ("c",)
    assert options.revision is None
    assert _stack(f"--config={file}").served_model_name == ("a", "b")
    assert _stack("--config", file, "other/model").model == "other/model"


def test_every_service_takes_a_file_too(tmp_path: Path) -> None:
    file = _file(tmp_path, "block_size: 8\nseed: 3\n")
    assert parse(WorkerConfig, ["--config", file, "--seed", "4"], "w") == WorkerConfig(block_size=8, seed=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_num_seqz: 8", "quire.yaml: max_num_seqz: `quire serve` has no flag of that name"),
        ("help: true", "quire.yaml: help: `quire serve` has no flag of that name"),
        ("max_num_seqs: true", "quire.yaml: max_num_seqs: True is no value of --max-num-seqs"),
        ("max_num_seqs: many", "--max-num-seqs: invalid int value: 'many'"),
        ("block_size: 0", "--block-size=0: must be at least 1"),
        ("tensor_parallel_size: 2", "--tensor-parallel-size=2: not built yet: tensor parallelism"),
        ("enable_lora: true", "--enable-lora: not built yet: LoRA adapters"),
        ("[1, 2]", "must hold names and values"),
        ("a: [", "--config="),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _stack("--config", _file(tmp_path, text))
    assert message in caught.value.message


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--config=/no/such/file"):
        _stack("--config", "/no/such/file")


def test_what_asks_for_what_there_is_anyway_is_taken() -> None:
    flags = "--enable-chunked-prefill --disable-log-requests --data-parallel-size 1 --task generate"
    assert _stack(*flags.split()).max_num_seqs == WorkerConfig().max_num_seqs


def test_every_flag_has_a_heading_and_a_sentence() -> None:
    headed = [name for names in GROUPS.values() for name in names]
    assert len(headed) == len(set(headed))
    for config_type in (TokenizerConfig, SchedulerConfig, WorkerConfig):
        for each in fields(config_type):
            assert each.name in headed, f"{each.name} needs a heading in flag_group.py"
            assert each.metadata["help"].endswith("."), each.name
