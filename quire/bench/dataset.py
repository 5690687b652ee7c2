"""The prompts of a load: random ones, or those of a file. Knows no server."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.errors import ConfigError

_WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request's prompt, as token ids or as text, and how much may come out."""

    token_ids: list[int] | None = None
    text: str = ""
    num_out: int


def load_prompts(options: argparse.Namespace, *, as_text: bool) -> list[Prompt]:
    """`--num-prompts` prompts of the dataset that the options name. Raises `ConfigError`.

    `as_text`: the server takes no token ids.
    """
    match options.dataset_name:
        case "random":
            return _random(options, as_text=as_text)
        case "custom":
            return _repeated(list(_custom(options)), options)
        case "sharegpt":
            return _repeated(list(_share_gpt(options)), options)
        case name:
            raise ConfigError(
                f"--dataset-name={name}: must be random, custom or sharegpt", field="dataset_name"
            )


def _random(options: argparse.Namespace, *, as_text: bool) -> list[Prompt]:
    """Lengths uniform around the wished ones; tokens uniform over the vocabulary, behind a common prefix."""
    draw = random.Random(options.seed)
    tokenizer = _tokenizer(options.tokenizer) if options.tokenizer else None
    vocab_size = tokenizer.get_vocab_size() if tokenizer else options.random_vocab_size

    def tokens(num_tokens: int) -> list[int]:
        return draw.choices(range(vocab_size), k=num_tokens)

    def length(wished: int) -> int:
        spread = options.random_range_ratio
        return max(1, draw.randint(round(wished * (1 - spread)), round(wished * (1 + spread))))

    prefix = tokens(options.random_prefix_len)
    prompts: list[Prompt] = []
    for _ in range(options.num_prompts):
        ids = [*prefix, *tokens(length(options.random_input_len))]
        num_out = length(options.random_output_len)
        if not as_text:
            prompts.append(Prompt(token_ids=ids, num_out=num_out))
        elif tokenizer:
            prompts.append(Prompt(text=tokenizer.decode(ids), num_out=num_out))
        else:
            words = " ".join(_WORDS[token % len(_WORDS)] for token in ids)
            prompts.append(Prompt(text=words, num_out=num_out))
    return prompts


def _custom(options: argparse.Namespace) -> Iterator[Prompt]:
    """JSON lines with a `prompt` each, and `output_tokens` where `--custom-output-len` is not to be taken."""
    for number, line in enumerate(_text_of(options).splitlines(), start=1):
        if not line.strip():
            continue
        entry = _json(options, line, f"line {number}")
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise _bad_file(options, f"line {number}: must be an object with a `prompt` text")
        yield Prompt(
            text=entry["prompt"], num_out=int(entry.get("output_tokens") or options.custom_output_len)
        )


def _share_gpt(options: argparse.Namespace) -> Iterator[Prompt]:
    """The first question of each conversation; the answer's length in tokens is how much comes out."""
    fixed = options.sharegpt_output_len
    if fixed is None and not options.tokenizer:
        raise ConfigError(
            "--dataset-name=sharegpt: needs --sharegpt-output-len, or --tokenizer to measure answers with",
            field="sharegpt_output_len",
        )
    tokenizer: Any = _tokenizer(options.tokenizer) if fixed is None else None
    document = _json(options, _text_of(options), "the file")
    for number, entry in enumerate(document if isinstance(document, list) else []):
        turns = [turn.get("value", "") for turn in entry.get("conversations", [])]
        if len(turns) < 2:
            continue
        num_out = fixed or max(1, len(tokenizer.encode(turns[1]).ids))
        yield Prompt(text=turns[0] or f"Conversation {number}", num_out=num_out)


def _repeated(prompts: list[Prompt], options: argparse.Namespace) -> list[Prompt]:
    """As many as wished: shuffled, and again from the beginning where the file has too few."""
    if not prompts:
        raise _bad_file(options, "holds no prompt")
    if not options.disable_shuffle:
        random.Random(options.seed).shuffle(prompts)
    return [prompts[number % len(prompts)] for number in range(options.num_prompts)]


def _text_of(options: argparse.Namespace) -> str:
    if not options.dataset_path:
        raise ConfigError(
            f"--dataset-name={options.dataset_name}: needs --dataset-path", field="dataset_path"
        )
    try:
        return Path(options.dataset_path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(options, str(error)) from error


def _json(options: argparse.Namespace, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _bad_file(options, f"{where}: {error}") from error


def _bad_file(options: argparse.Namespace, why: str) -> ConfigError:
    return ConfigError(f"--dataset-path={options.dataset_path}: {why}", field="dataset_path")


def _tokenizer(source: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError("--tokenizer: needs the tokenizers package", field="tokenizer") from error
    file = Path(source) / "tokenizer.json" if Path(source).is_dir() else None
    load: Callable[[str], Any] = Tokenizer.from_file if file else Tokenizer.from_pretrained
    try:
        return load(str(file or source))
    except Exception as error:  # the library raises bare ones
        raise ConfigError(f"--tokenizer={source}: {error}", field="tokenizer") from error
