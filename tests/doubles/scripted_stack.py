"""A whole stack whose model says what its prompt tells it: front doors over HTTP, scheduler and scripted worker, each a process."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import urlopen

from tokenizers import AddedToken, Tokenizer

from quire.assets import shipped_model_path
from tests.tokenizer.stack import scheduler, service, tokenizer

_READY_WITHIN_S = 60.0
_POLL_S = 0.02

SPECIAL_TOKENS = ("[TOOL_CALLS]", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>")
"""Markers that some models' tokenizers hold for special, and this one too."""

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool.function.name }} {{ tool.function.parameters | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"""


@dataclass(frozen=True, slots=True)
class ScriptedStack:
    """A scheduler with a scripted worker, to which front doors can be attached."""

    scheduler: str
    model: Path

    @contextlib.contextmanager
    def front_door(self, *flags: str) -> Iterator[str]:
        """A front door with flags of its own, once it is ready; the address of its HTTP API."""
        with tokenizer(self.scheduler, "--model", str(self.model), *flags) as running:
            url = running.facts["http"]
            _wait_until_ready(url)
            yield url


@contextlib.contextmanager
def scripted_stack(directory: Path) -> Iterator[ScriptedStack]:
    """The stack; its model, a tokenizer alone, is written to `directory`."""
    model = _write_model(directory)
    with scheduler() as running:
        worker = ("tests.doubles.scripted_worker", "--scheduler", running.address, "--model", str(model))
        with service(*worker):
            yield ScriptedStack(running.address, model)


def _write_model(directory: Path) -> Path:
    model = directory / "scripted"
    model.mkdir()
    source = shipped_model_path()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(source / name, model)
    words = Tokenizer.from_file(str(source / "tokenizer.json"))
    words.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    words.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return model


def _wait_until_ready(url: str) -> None:
    deadline = monotonic() + _READY_WITHIN_S
    while True:
        with contextlib.suppress(URLError):
            with urlopen(f"{url}/ready", timeout=_READY_WITHIN_S) as answer:
                if answer.status == 200:
                    return
        assert monotonic() < deadline, f"{url} is not ready"
        sleep(_POLL_S)
