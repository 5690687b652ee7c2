"""Measures a trained model: bits per byte of the held-out text, and how much its samples copy from the text.

    python examples/train_model/evaluate.py MODEL_DIRECTORY TEXT

prints one JSON object. Exit status 1 says that a sample copied a run of `COPIED_RUN_LEN` tokens,
2 that the arguments or files cannot be used.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from byte_level_bpe import END_OF_TEXT, TURN_END, render_chat
from copied_run import CopiedRunFinder
from corpus import split_text, turns
from generation import sample
from held_out_loss import bits_per_byte
from llama import LlamaForCausalLM
from model_directory import DEFAULT_SAMPLING, read_model_directory
from tokenizers import Tokenizer

COPIED_RUN_LEN = 20  # tokens
SAMPLE_LEN = 200  # tokens
STRIDE = 512  # tokens between the windows of the held-out loss

_SAMPLINGS: dict[str, dict[str, float]] = {
    "temperature 1": {"temperature": 1.0, "top_p": 1.0},
    "default sampling": {key: DEFAULT_SAMPLING[key] for key in ("temperature", "top_p")},
}


def main() -> int:
    """Evaluate as the command line asks and print the figures."""
    arguments = _parse_arguments()
    text = arguments.text.read_text(encoding="utf-8")
    _, held_out = split_text(arguments.text)
    model, tokenizer = read_model_directory(arguments.model, torch.device(arguments.device))
    figures = held_out_figures(model, tokenizer, held_out[: arguments.max_chars])
    figures |= copying_figures(model, tokenizer, text, num_samples=arguments.num_samples, seed=arguments.seed)
    print(json.dumps(figures, indent=2))
    return int(any(figures["samples_with_copied_run"].values()))


def held_out_figures(model: LlamaForCausalLM, tokenizer: Tokenizer, held_out: str) -> dict[str, Any]:
    """Score the held-out text as `bits_per_byte` describes, at this module's stride."""
    token_ids = torch.tensor(tokenizer.encode(held_out).ids, device=next(model.parameters()).device)
    num_bytes = len(held_out.encode())
    first_id = tokenizer.token_to_id(END_OF_TEXT)
    stride = min(STRIDE, model.shape.max_position_embeddings)
    return {
        "held_out_bits_per_byte": bits_per_byte(
            model, token_ids, num_bytes, first_id=first_id, stride=stride
        ),
        "held_out_bytes": num_bytes,
        "held_out_tokens": len(token_ids),
    }


def copying_figures(
    model: LlamaForCausalLM, tokenizer: Tokenizer, text: str, *, num_samples: int, seed: int
) -> dict[str, Any]:
    """Look in `num_samples` samples per way of sampling for the longest run that `text` holds too.

    A sample is `SAMPLE_LEN` tokens, its prompt not counted, encoded anew so that text is compared with text. Half
    of the prompts are a speaker's heading, half a chat whose last words are the user's.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples} must be at least 2: one heading, one chat")
    finder = CopiedRunFinder(tokenizer.encode(text).ids)
    prompts = _prompts(text, num_samples, random.Random(seed))
    runs: dict[str, list[int]] = {}
    num_ended = 0
    for name, sampling in _SAMPLINGS.items():
        generator = torch.Generator().manual_seed(seed)
        prompt_ids = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
        drawn = sample(model, prompt_ids, max_tokens=SAMPLE_LEN, generator=generator, **sampling)
        runs[name] = [finder.longest_run(_encoded_anew(tokenizer, ids)) for ids in drawn]
        num_ended += sum(tokenizer.token_to_id(TURN_END) in ids for ids in drawn[1::2])
    return {
        "num_samples": num_samples * len(_SAMPLINGS),
        "samples_with_copied_run": {
            name: sum(length >= COPIED_RUN_LEN for length in lengths) for name, lengths in runs.items()
        },
        "longest_copied_run": {name: max(lengths) for name, lengths in runs.items()},
        "share_of_chat_answers_that_end": num_ended / (num_samples // 2 * len(_SAMPLINGS)),
    }


def _prompts(text: str, num_prompts: int, rng: random.Random) -> list[str]:
    """Headings at even places, chats at odd ones."""
    spoken = rng.choices([turn for turn in turns(text) if turn.speaker] or turns(text), k=num_prompts)
    return [
        render_chat([{"role": "user", "content": turn.words[:SAMPLE_LEN]}], add_generation_prompt=True)
        if index % 2
        else f"{turn.speaker}:\n"
        for index, turn in enumerate(spoken)
    ]


def _encoded_anew(tokenizer: Tokenizer, token_ids: list[int]) -> list[int]:
    return tokenizer.encode(tokenizer.decode(token_ids, skip_special_tokens=False)).ids


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="directory that train.py wrote")
    parser.add_argument("text", type=Path, help="UTF-8 text that the model was trained on, whole")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--num-samples", type=int, default=256, help="samples per way of sampling, at least 2"
    )
    parser.add_argument(
        "--max-chars", type=int, default=None, help="score only this much of the held-out text"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        sys.exit(2)
