"""Trains a small Llama and its tokenizer on one text file and writes a model directory with its card.

    python examples/train_model/train.py TEXT --out DIRECTORY --device cuda

The first nine tenths of the text are trained on, tokenizer included; the last tenth is held out.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from byte_level_bpe import END_OF_TEXT, train_tokenizer
from corpus import split_text
from evaluate import STRIDE, copying_figures, held_out_figures
from held_out_loss import bits_per_byte
from llama import LlamaForCausalLM, LlamaShape
from model_card import model_card
from model_directory import DEFAULT_SAMPLING, read_model_directory, write_model_directory
from tokenizers import Tokenizer
from training import Schedule, TrainedWeights, train
from window_sampler import WindowSampler

NUM_VARIANTS = 8  # random segmentations of the text that are held at once


def main() -> int:
    """Train, write and evaluate as the command line asks."""
    arguments = _parse_arguments()
    torch.manual_seed(arguments.seed)
    train_text, held_out = split_text(arguments.text)
    tokenizer = train_tokenizer(train_text, arguments.vocab_size)
    shape = _from_arguments(LlamaShape, arguments)
    schedule = _from_arguments(Schedule, arguments)
    trained = _train(arguments, shape, schedule, tokenizer, train_text, held_out)
    write_model_directory(arguments.out, arguments.name, shape, trained.weights, tokenizer)
    model, tokenizer = read_model_directory(arguments.out, torch.device(arguments.device))
    figures = held_out_figures(model, tokenizer, held_out) | copying_figures(
        model, tokenizer, train_text + held_out, num_samples=arguments.num_samples, seed=arguments.seed
    )
    print(figures, flush=True)
    facts = _facts(arguments, schedule, trained, train_text, held_out)
    facts["num_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    (arguments.out / "README.md").write_text(model_card(shape, facts, figures), encoding="utf-8")
    return 0


def _train(
    arguments: argparse.Namespace,
    shape: LlamaShape,
    schedule: Schedule,
    tokenizer: Tokenizer,
    train_text: str,
    held_out: str,
) -> TrainedWeights:
    device = torch.device(arguments.device)
    sampler = WindowSampler(
        train_text,
        tokenizer,
        window_len=arguments.window_len or shape.max_position_embeddings,
        chat_share=arguments.chat_share,
        bpe_dropout=arguments.bpe_dropout,
        num_variants=NUM_VARIANTS,
        seed=arguments.seed,
        device=device,
    )
    held_out_ids = torch.tensor(tokenizer.encode(held_out).ids, device=device)
    first_id = tokenizer.token_to_id(END_OF_TEXT)

    def score(model: LlamaForCausalLM) -> float:
        stride = shape.max_position_embeddings  # windows side by side: half the work of the final figure
        return bits_per_byte(model, held_out_ids, len(held_out.encode()), first_id=first_id, stride=stride)

    model = LlamaForCausalLM(shape, dropout=arguments.dropout).to(device)
    return train(model, sampler, schedule, score, lambda line: print(line, flush=True))


def _facts(
    arguments: argparse.Namespace, schedule: Schedule, trained: TrainedWeights, train_text: str, held_out: str
) -> dict[str, Any]:
    note = (
        arguments.data_note.read_text(encoding="utf-8").strip()
        if arguments.data_note
        else arguments.text.name
    )
    on_gpu = arguments.device == "cuda"
    return {
        "name": arguments.name,
        "license_id": arguments.license,
        "data_note": note,
        "train_bytes": len(train_text.encode()),
        "held_out_bytes": len(held_out.encode()),
        "chat_percent": round(100 * arguments.chat_share),
        "command": shlex.join(["python", *sys.argv]),
        "num_steps": trained.num_steps,
        "best_step": trained.best_step,
        "batch_size": schedule.batch_size,
        "window_len": arguments.window_len or arguments.max_position_embeddings,
        "device": f"one {torch.cuda.get_device_name()}" if on_gpu else "the CPU",
        "stride": min(STRIDE, arguments.max_position_embeddings),
        **{name: DEFAULT_SAMPLING[name] for name in ("temperature", "top_p")},
    }


def _from_arguments(kind: type[Any], arguments: argparse.Namespace) -> Any:
    return kind(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(kind)})


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="UTF-8 text file")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--name", default="quire-shakespeare", help="name on the card and in config.json")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data-note", type=Path, help="Markdown about the text's origin, copied into the card"
    )
    parser.add_argument("--license", default="other", help="license identifier for the card")
    parser.add_argument("--window-len", type=int, help="tokens per training window (default: the context)")
    parser.add_argument(
        "--chat-share", type=float, default=0.2, help="share of windows that are conversations"
    )
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--bpe-dropout", type=float, default=0.1, help="0 turns random segmentations off")
    parser.add_argument(
        "--num-samples", type=int, default=256, help="samples per way of sampling, at the end"
    )
    parser.add_argument("--vocab-size", type=int, default=1024)
    for kind in (LlamaShape, Schedule):
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                flag = "--" + field.name.replace("_", "-")
                parser.add_argument(
                    flag, type=type(field.default), default=field.default, help="default %(default)s"
                )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
