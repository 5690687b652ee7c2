"""References of `transformers` with random weights, saved for the worker to load. Knows no check."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu.agreement.served import DEVICE
from benchmarks.gpu.model import Model


def random_model(directory: Path, model: Model, config: dict[str, Any]) -> PreTrainedModel:
    """A bfloat16 reference with random weights, saved for the worker to load."""
    Model(name=model.name, config=config, max_model_len=1024).write(directory)
    torch.manual_seed(3)
    with torch.device(DEVICE):
        reference = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(directory), dtype=torch.bfloat16
        )
    reference.save_pretrained(directory)
    return reference.eval()
