"""The models that are measured: published shapes with random weights, and one set of flags for each.

A model becomes a directory of `config.json` and a byte-level tokenizer of the right vocabulary, so that the front door
turns tokens into text as it would for the published model. Knows no workload.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

_LETTERS = "etaoinshrdlcumwf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One shape and the flags that serve every row of it."""

    name: str
    config: dict[str, Any]
    max_model_len: int
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_num_prefill_tokens_while_decoding: int = 352
    """So many prompt tokens of a 7B shape take about as long as a decode step; with 32 tokens of sequences that decode they
    fill a padded size."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        return self.config["vocab_size"]

    def flags(self, directory: Path) -> dict[str, Any]:
        """Worker flags, by the names of WorkerConfig."""
        return {
            "model": str(directory),
            "served_model_name": (self.name,),
            "load_format": "dummy",
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
        }

    @property
    def scheduler_flags(self) -> dict[str, Any]:
        """Flags by the names of SchedulerConfig."""
        return {"max_num_prefill_tokens_while_decoding": self.max_num_prefill_tokens_while_decoding}

    def write(self, directory: Path) -> None:
        """Writes `config.json` and the tokenizer."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        (directory / "tokenizer_config.json").write_text("{}")
        _tokenizer(self.vocab_size).save(str(directory / "tokenizer.json"), pretty=False)


def _config(architecture: str, **settings: Any) -> dict[str, Any]:
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "hidden_act": "silu",
        "head_dim": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | settings


QWEN3_0_6B = Model(
    name="Qwen3-0.6B",
    max_model_len=4096,
    max_num_prefill_tokens_while_decoding=1024,
    config=_config(
        "Qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, rms_norm_eps=1e-6, max_position_embeddings=40960,
        tie_word_embeddings=True, rope_theta=1000000.0, eos_token_id=151645,
    ),
)  # fmt: skip
LLAMA_3_1_8B = Model(
    name="Llama-3.1-8B",
    max_model_len=33000,
    config=_config(
        "Llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, max_position_embeddings=131072,
        rope_theta=500000.0, eos_token_id=128001,
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
)  # fmt: skip
MISTRAL_7B = Model(
    name="Mistral-7B",
    max_model_len=4096,
    config=_config(
        "Mistral", vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, max_position_embeddings=32768,
        rope_theta=1000000.0, sliding_window=None, eos_token_id=2,
    ),
)  # fmt: skip
QWEN2_5_7B = Model(
    name="Qwen2.5-7B",
    max_model_len=4096,
    config=_config(
        "Qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, rms_norm_eps=1e-6, max_position_embeddings=32768,
        rope_theta=1000000.0, eos_token_id=151643,
    ),
)  # fmt: skip

MODELS = {model.name: model for model in (QWEN3_0_6B, LLAMA_3_1_8B, MISTRAL_7B, QWEN2_5_7B)}


def tiny(model: Model) -> Model:
    """The same architecture, so small that a CPU runs it."""
    small = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 511,
    }  # fmt: skip
    return replace(
        model,
        config=model.config | small,
        max_model_len=min(model.max_model_len, 2112),
        max_num_seqs=64,
        max_num_batched_tokens=512,
        max_num_prefill_tokens_while_decoding=64,
    )


def _tokenizer(vocab_size: int) -> Tokenizer:
    """256 bytes, then made-up words; no merges, since prompts are sent as ids and only detokenization is measured."""
    vocab = {char: number for number, char in enumerate(sorted(ByteLevel.alphabet()))}
    for token_id in range(len(vocab), vocab_size):
        vocab[_word(token_id)] = token_id
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _word(number: int) -> str:
    """A word that no other number has, at least three characters long; every other one begins with a space."""
    letters = "".join(_LETTERS[int(digit, 16)] for digit in f"{number:x}")
    return ("Ġ" if number % 2 else "") + letters
