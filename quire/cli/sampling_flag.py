"""SamplingParams as flags: one for every field that makes sense on a command line. Knows no server."""

import argparse
import json
from typing import Any

from quire.errors import ConfigError
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.structured_outputs import StructuredOutputsParams

_FLAGS: dict[str, tuple[Any, str]] = {
    "n": (int, "Sequences drawn for the prompt."),
    "temperature": (float, "0 is greedy, 1 draws as the model says, more is bolder."),
    "top_p": (float, "Draw among the likeliest tokens that add up to this share."),
    "top_k": (int, "Draw among this many of the likeliest tokens; 0 keeps all."),
    "min_p": (float, "Draw among tokens at least this many times as likely as the likeliest."),
    "seed": (int, "Seed, for a text that can be had again."),
    "presence_penalty": (float, "Taken off the logits of tokens that the text holds already."),
    "frequency_penalty": (float, "Taken off the logit of a token once for each time that the text holds it."),
    "repetition_penalty": (
        float,
        "Makes tokens of prompt and text this many times less likely, by their logits.",
    ),
    "max_tokens": (int, "Most tokens to generate."),
    "min_tokens": (int, "Tokens before the text may end."),
    "stop": ("texts", "String that ends the text; may be repeated."),
    "stop_token_ids": ("numbers", "Token that ends the text; may be repeated."),
    "include_stop_str_in_output": (bool, "Show the stop string as well."),
    "ignore_eos": (bool, "Go on past the model's end of sequence."),
    "bad_words": ("texts", "Text that must not occur; may be repeated."),
    "logit_bias": (json.loads, "JSON object of token ids and what is added to their logits."),
    "allowed_token_ids": ("numbers", "Token that may be drawn, and no other; may be repeated."),
    "skip_special_tokens": (bool, "Leave special tokens out of the text."),
    "spaces_between_special_tokens": (bool, "Put spaces between special tokens that are shown."),
    "truncate_prompt_tokens": (int, "Keep this many of the prompt's last tokens; -1 as many as fit."),
    "structured_outputs": (
        json.loads,
        "JSON object with one constraint: json, regex, choice, grammar or json_object.",
    ),
}
"""How a value is read, and a sentence."""

_REPEATED = {"texts": str, "numbers": int}

_MODELS_OWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Unset, these take the model's default."""


def add_sampling_flags(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds the flags in a group of their own; `max_tokens` is what is taken when it is not given."""
    group = parser.add_argument_group(
        "sampling", "Names and meanings of SamplingParams; unset, the model's default."
    )
    for name, (kind, sentence) in _FLAGS.items():
        flag = "--" + name.replace("_", "-")
        if name == "max_tokens":
            group.add_argument(
                flag,
                type=int,
                default=max_tokens,
                metavar="N",
                help=f"{sentence[:-1]} (default: {max_tokens}).",
            )
        elif kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=sentence)
        elif kind in _REPEATED:
            value_type = _REPEATED[kind]
            group.add_argument(
                flag,
                action="append",
                type=value_type,
                metavar="TEXT" if value_type is str else "N",
                help=sentence,
            )
        else:
            group.add_argument(
                flag, type=kind, metavar={int: "N", float: "X"}.get(kind, "JSON"), help=sentence
            )


def given_params(options: argparse.Namespace) -> dict[str, Any]:
    """What was given, by the names of SamplingParams."""
    return {name: value for name in _FLAGS if (value := getattr(options, name, None)) is not None}


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The parameters that the flags ask for. Raises `InvalidRequest` for a value that breaks a rule."""
    values: dict[str, Any] = dict.fromkeys(_MODELS_OWN) | given_params(options)
    if "structured_outputs" in values:
        try:
            values["structured_outputs"] = StructuredOutputsParams(**values["structured_outputs"])
        except TypeError as error:
            raise ConfigError(f"--structured-outputs: {error}", field="structured_outputs") from error
    return SamplingParams(**values, output_kind=RequestOutputKind.DELTA)
