"""Finds the files of a model: a local directory, or a hub id through huggingface_hub, of which only some are fetched.

The token, the endpoint and offline mode are huggingface_hub's own environment variables (HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE). Knows no format but JSON; which files a service needs is its own business.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quire.errors import ConfigError


def model_directory(
    model: str, revision: str | None, download_dir: str | None, patterns: Sequence[str]
) -> Path:
    """The directory that holds the model's files, those that match `patterns` fetched if need be.

    Raises `ConfigError` when there is neither a directory nor a model of that name.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    # Needed by services that load models alone: the package itself does without it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(model, revision=revision, cache_dir=download_dir, allow_patterns=list(patterns))
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"--model={model}{where}: neither a directory nor a model that the hub gave: {error}",
            field="model",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file as a dict; empty when it does not exist. Raises `ConfigError`."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--model: {path} is no JSON: {error}", field="model") from error
