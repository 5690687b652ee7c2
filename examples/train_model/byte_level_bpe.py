"""The tokenizer that ships with the model: byte-level BPE with three special tokens, and its chat template.

It knows the `tokenizers` library and Jinja; it does not know the model or how conversations are chosen.
"""

from __future__ import annotations

import functools
from typing import NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
ROLES = ("system", "user", "assistant")

# The ChatML layout: a turn is opened with its role, and closed by a token that also ends the assistant's answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be one of system, user, assistant, not ' + message['role'] | string) }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` tokens (specials and the 256 bytes included) from `text`; every byte can be encoded.

    Raises ValueError where `vocab_size` leaves no room for a merge.
    """
    smallest = len(ByteLevel.alphabet()) + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise ValueError(
            f"vocab_size={vocab_size} must be over {smallest}, the bytes and special tokens alone"
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def render_chat(messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    """Render a conversation through the chat template; a role that it does not know raises TemplateError."""
    return _compiled_template().render(messages=messages, add_generation_prompt=add_generation_prompt)


@functools.cache
def _compiled_template() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(CHAT_TEMPLATE)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
