"""What the worker loads, what it refuses to start with, and the figures that it names."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from quire_kernels import linear
from quire_scheduler.core import Sampling
from quire_worker import assembly, loading
from quire_worker.kv_cache import CacheShape, num_cache_blocks
from quire_worker.model.config import parse_model_config
from quire_worker.model.weights import load_weights
from safetensors.torch import load_file, save_file

from quire.config import WorkerConfig
from quire.errors import ConfigError
from quire.model_files import read_json
from tests.worker.driver import Driver
from tests.worker.tiny_model import load_tiny, make_tiny_model

_CPU, _DEVICE = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model").directory


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _text(directory: Path, **settings: Any) -> list[int]:
    loaded = load_tiny(directory, **settings)
    return Driver.of(loaded).generate([([5, 6, 7], Sampling(max_tokens=20, temperature=0.0))])[0].token_ids


def test_sharded_files_load_as_one(directory: Path) -> None:
    whole = _text(directory)
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    (directory / "model.safetensors").unlink()
    for shard in range(3):
        part = {name: tensors[name] for name in names[shard::3]}
        save_file(part, directory / f"model-0000{shard + 1}-of-00003.safetensors")
    assert _text(directory) == whole


def test_a_shallow_model_has_a_layer_of_every_window_and_one_that_is_followed(directory: Path) -> None:
    config = parse_model_config(read_json(directory / "config.json"))
    for windows, wanted in (
        ((None,) * 4, (None, None)),
        ((8, 8, None, 8), (8, 8, None)),
        ((None, 8, 16, 8), (None, 8, 16)),
    ):
        shallow = replace(config, num_hidden_layers=4, sliding_windows=windows).shallow()
        assert (shallow.num_hidden_layers, shallow.sliding_windows) == (len(wanted), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_in_the_weights_behind_them_and_rounded_once(directory: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(directory / "model.safetensors").items()}
    config = parse_model_config(read_json(directory / "config.json"))
    weights = load_weights(config, directory, dtype, _CPU)
    x = torch.eye(config.hidden_size, dtype=dtype)
    for index, layer in enumerate(weights.layers):
        of_layer = f"model.layers.{index}."
        for actual, norm, names in (
            (layer.qkv, "input_layernorm", [f"self_attn.{name}_proj" for name in "qkv"]),
            (layer.gate_up, "post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            weight = torch.cat([tensors[f"{of_layer}{name}.weight"] for name in names]).double()
            wanted = (weight * tensors[f"{of_layer}{norm}.weight"].double()).to(dtype)
            assert torch.equal(linear(x, actual).T, wanted)  # packed or not
            assert not torch.equal(wanted, weight.to(dtype))
    assert torch.equal(weights.norm, tensors["model.norm.weight"])


def test_missing_tensor_is_named(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_tiny(directory)


def test_tensor_of_another_shape_is_named(directory: Path) -> None:
    _rewrite(directory / "config.json", intermediate_size=128)
    with pytest.raises(ConfigError, match=r"gate_proj\.weight has shape \[96, 64\].*asks for \[128, 64\]"):
        load_tiny(directory)


def test_damaged_and_absent_weight_files_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors is no safetensors file"):
        load_tiny(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no \*\.safetensors file"):
        load_tiny(directory)


def test_weights_that_do_not_fit_are_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB of 1 GiB")

    monkeypatch.setattr(loading, "load_weights", load)
    with pytest.raises(
        ConfigError, match=r"--model=.*no room for its weights as torch\.float32: tried to allocate"
    ):
        load_tiny(directory)


def test_buffers_that_do_not_fit_are_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(**_sizes: int) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB of 1 GiB")

    monkeypatch.setattr(assembly, "DeviceBatch", allocate)
    with pytest.raises(
        ConfigError, match=r"--max-num-seqs=7: .* --max-model-len=64 and steps of 80 tokens: tried"
    ):
        load_tiny(directory, max_num_seqs=7, max_model_len=64, max_num_batched_tokens=80)


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the directory has no config\.json"):
        load_tiny(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is no JSON"):
        load_tiny(tmp_path)


def test_dummy_weights_are_seeded(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    first, again, other = (_text(directory, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_generation_config_names_the_ends_of_sequence(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert list(load_tiny(directory).spec.eos_token_ids) == [7, 9]
    (directory / "generation_config.json").unlink()
    assert list(load_tiny(directory).spec.eos_token_ids) == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures=GPT2LMHeadModel: must be one of Llama"),
        ({"architectures": []}, "architectures=none"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu: must be silu"),
        ({"vocab_size": None}, "config.json does not say vocab_size"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: must be 1"),
        ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "rope_parameters differ per layer type"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type=longrope: must be default, linear"),
    ],
)
def test_unsupported_config_is_refused(directory: Path, changes: dict[str, Any], message: str) -> None:
    _rewrite(directory / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        load_tiny(directory)


def test_context_longer_than_the_models_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match="--max-model-len=769: the model was made for at most 768"):
        load_tiny(directory, max_model_len=769)


def test_pool_too_small_for_one_context_names_what_fits(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs 48 KV blocks.*47 fit.*that fits is 752"):
        load_tiny(directory, num_gpu_blocks_override=47)


class TestCacheSize:
    """Blocks of 2 layers x 2 x 16 tokens x 2 heads x 16 x 4 bytes = 8,192 bytes, in 1 MB of memory."""

    @pytest.fixture
    def shape(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> CacheShape:
        memory = psutil.virtual_memory()._replace(available=2**20)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        model = parse_model_config(read_json(directory / "config.json"))
        return CacheShape(model=model, dtype=torch.float32, block_size=16)

    def test_override_beyond_memory_names_what_fits(self, shape: CacheShape) -> None:
        assert shape.block_bytes == 8192
        config = WorkerConfig(num_gpu_blocks_override=128)
        with pytest.raises(ConfigError, match=r"--num-gpu-blocks-override=128.*at most 127 blocks do"):
            num_cache_blocks(shape, config, 64, _CPU)

    def test_override_of_what_fits_is_taken(self, shape: CacheShape) -> None:
        assert num_cache_blocks(shape, WorkerConfig(num_gpu_blocks_override=127), 64, _CPU) == 127

    def test_bytes_beyond_memory_name_what_fits(self, shape: CacheShape) -> None:
        config = WorkerConfig(kv_cache_memory_bytes=2**20 + 1)
        with pytest.raises(ConfigError, match=r"--kv-cache-memory-bytes=1048577.*at most 1048576 fit"):
            num_cache_blocks(shape, config, 64, _CPU)

    def test_half_of_what_is_available_is_taken(self, shape: CacheShape) -> None:
        assert num_cache_blocks(shape, WorkerConfig(), 64, _CPU) == 64

    def test_one_longest_context_may_take_more_than_half(self, shape: CacheShape) -> None:
        assert num_cache_blocks(shape, WorkerConfig(), 100 * 16, _CPU) == 100

    def test_no_more_than_every_slot_could_use(self, shape: CacheShape) -> None:
        assert num_cache_blocks(shape, WorkerConfig(max_num_seqs=2), 64, _CPU) == 8

    def test_context_beyond_memory_names_what_fits(self, shape: CacheShape) -> None:
        with pytest.raises(ConfigError, match=r"--max-model-len=4096 needs 256 KV blocks.*fits is 2032$"):
            num_cache_blocks(shape, WorkerConfig(), 4096, _CPU)

    @pytest.mark.parametrize(("setting", "fits"), [
        ({"num_gpu_blocks_override": 7}, {"num_gpu_blocks_override": 8}),
        ({"kv_cache_memory_bytes": 65535}, {"kv_cache_memory_bytes": 65536}),
    ])  # fmt: skip
    def test_setting_that_leaves_too_little_names_what_would_do(
        self, shape: CacheShape, setting: dict[str, int], fits: dict[str, int]
    ) -> None:
        ((name, value),) = fits.items()
        flag = name.replace("_", "-")
        with pytest.raises(
            ConfigError, match=rf"fits is 112; --{flag}=.* would have to be at least {value}$"
        ):
            num_cache_blocks(shape, WorkerConfig(**setting), 128, _CPU)
        assert num_cache_blocks(shape, WorkerConfig(**fits), 128, _CPU) == 8


class TestCacheSizeOnDevice:
    """The same blocks on a device with 1,048,576 bytes, 900,000 of them free."""

    @pytest.fixture
    def shape(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> CacheShape:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (900_000, 2**20))
        model = parse_model_config(read_json(directory / "config.json"))
        return CacheShape(model=model, dtype=torch.float32, block_size=16)

    @pytest.mark.parametrize(
        ("share", "step_bytes", "num_blocks"),
        [(1.0, 0, 108), (0.5, 0, 44), (0.5, 2**16, 36), (0.5, 2**18, 12)],
    )
    def test_cache_takes_the_share_that_weights_and_steps_leave(
        self, shape: CacheShape, share: float, step_bytes: int, num_blocks: int
    ) -> None:
        config = WorkerConfig(gpu_memory_utilization=share)
        assert num_cache_blocks(shape, config, 64, _DEVICE, step_bytes=step_bytes) == num_blocks

    @pytest.mark.parametrize(("share", "step_bytes"), [(0.1, 0), (0.5, 2**16), (0.3, 2**18)])
    def test_share_that_is_too_low_names_one_that_would_do(
        self, shape: CacheShape, share: float, step_bytes: int
    ) -> None:
        config = WorkerConfig(gpu_memory_utilization=share)
        with pytest.raises(ConfigError) as refused:
            num_cache_blocks(shape, config, 640, _DEVICE, step_bytes=step_bytes)
        found = re.search(rf"--gpu-memory-utilization={share} .* at least (0\.\d+)$", refused.value.message)
        assert found
        least = float(found[1])
        enough = replace(config, gpu_memory_utilization=least)
        assert num_cache_blocks(shape, enough, 640, _DEVICE, step_bytes=step_bytes) >= 40
        less = replace(config, gpu_memory_utilization=least - 1e-3)
        with pytest.raises(ConfigError):
            num_cache_blocks(shape, less, 640, _DEVICE, step_bytes=step_bytes)

    def test_steps_that_leave_no_room_name_what_would(self, shape: CacheShape) -> None:
        config = WorkerConfig(max_num_batched_tokens=4096, max_num_seqs=300)
        limits = "--max-num-batched-tokens=4096 and --max-num-seqs=300"
        wanted = (
            f"--max-model-len=640 .*about 70 % of {limits} would leave room at --gpu-memory-utilization=1$"
        )
        with pytest.raises(ConfigError, match=wanted):
            num_cache_blocks(shape, config, 640, _DEVICE, step_bytes=800_000)
        assert num_cache_blocks(
            shape, replace(config, gpu_memory_utilization=1), 640, _DEVICE, step_bytes=560_000
        )

    def test_context_beyond_the_device_names_both_figures(self, shape: CacheShape) -> None:
        with pytest.raises(
            ConfigError, match=r"900,000 bytes are free on the device, and 1,056,768 are needed"
        ):
            num_cache_blocks(shape, WorkerConfig(), 2048, _DEVICE)


def test_cache_of_8_bits_holds_more_blocks_and_serves(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path).directory
    memory = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": 1 << 20, "max_num_seqs": 64}
    wide = load_tiny(directory, **memory)
    narrow = load_tiny(directory, kv_cache_dtype="fp8", **memory)
    assert narrow.capacity.num_blocks > 2 * wide.capacity.num_blocks
    sampling = Sampling(max_tokens=8, temperature=0.0)
    texts = [Driver.of(loaded).generate([([5, 6, 7, 8], sampling)])[0].token_ids for loaded in (wide, narrow)]
    assert len(texts[0]) == len(texts[1]) == 8
