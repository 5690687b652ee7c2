"""The model card: what a trained model is and how good, in Markdown. It knows figures, not how they were measured."""

from __future__ import annotations

from typing import Any

from llama import LlamaShape

_CARD = """\
---
license: {license_id}
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A small Llama for demonstrations and tests: big enough to write recognisable text, small enough to ship with the
program that serves it. It knows nothing but its one training text; do not ask it for facts.

## Architecture

`LlamaForCausalLM`, {num_parameters:,} parameters, stored as bfloat16: {num_hidden_layers} layers, hidden size
{hidden_size}, {num_attention_heads} query heads and {num_key_value_heads} key/value heads of {head_dim}, SwiGLU of
{intermediate_size}, tied embeddings, a context of {max_position_embeddings} tokens. The tokenizer is byte-level BPE with
{vocab_size} tokens, learned from the training part alone; it encodes any bytes.

## Data

{data_note}

The first 90 % of the file ({train_bytes:,} bytes) was trained on; the last 10 % ({held_out_bytes:,} bytes) was held out.
{chat_percent} % of the training windows show the training part's paragraphs as a chat: consecutive speeches, without
their headings, alternate between user and assistant, half of the conversations opening with the system message
`You are NAME.`. So an answer in a chat ends by itself, with `<|im_end|>`. Plain text goes on for as long as it is let.

## Training

```
{command}
```

{num_steps} steps of {batch_size} windows of {window_len} tokens on {device}; the best moving average of the weights, by
held-out loss, was that of step {best_step}.

## Figures

Measured on the stored bfloat16 weights, computed in float32, by `evaluate.py`.

* Held-out loss: **{held_out_bits_per_byte:.3f} bits per byte** ({held_out_tokens:,} tokens, every one scored; windows of
  {max_position_embeddings} tokens, {stride} apart). The stopping step was chosen on the same held-out text.
* Copying: of {num_samples} samples of 200 tokens, half at temperature 1 and half at the default sampling (temperature
  {temperature}, top-p {top_p}), **{num_copied}** hold a run of 20 tokens that stands in the text. The longest run was
  {longest_run} tokens.
* {ended_percent:.0f} % of sampled chat answers end within 200 tokens.
"""


def model_card(shape: LlamaShape, facts: dict[str, Any], figures: dict[str, Any]) -> str:
    """Fill the card in. `facts` name the run, `figures` are those of `evaluate.py`."""
    values = {field: getattr(shape, field) for field in shape.__dataclass_fields__}
    ended = figures["share_of_chat_answers_that_end"]
    return _CARD.format(
        **values,
        **facts,
        held_out_bits_per_byte=figures["held_out_bits_per_byte"],
        held_out_tokens=figures["held_out_tokens"],
        num_samples=figures["num_samples"],
        num_copied=sum(figures["samples_with_copied_run"].values()),
        longest_run=max(figures["longest_copied_run"].values()),
        ended_percent=100 * ended,
    )
