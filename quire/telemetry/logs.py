"""Structured logs: one line per event on stderr, fields as key=value, the request id among them.

    2026-03-01T12:00:00.123Z INFO scheduler quire_scheduler.loop worker registered group=1 request_id=r-7

Fields are what a caller passes as `extra={"fields": {...}}` or through `with_request_id`. Knows no service.
"""

import json
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from typing import Any

_LEVEL_VARIABLE = "QUIRE_LOG_LEVEL"


def configure_logging(service_name: str, level: str = "") -> None:
    """Sends this process's logs to stderr in the form above. `level` wins over QUIRE_LOG_LEVEL; default INFO."""
    chosen = (level or os.environ.get(_LEVEL_VARIABLE, "INFO")).upper()
    if chosen not in logging.getLevelNamesMapping():
        chosen = "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service_name))
    logging.basicConfig(level=chosen, handlers=[handler], force=True)


def with_request_id(logger: logging.Logger, request_id: str) -> logging.LoggerAdapter[logging.Logger]:
    """`logger` with `request_id` on each of its lines."""
    return _FieldAdapter(logger, {"request_id": request_id})


class LineFormatter(logging.Formatter):
    """One line per record; line breaks in messages and traces are escaped, so that a line is always one event."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = [f"{moment}.{int(record.msecs):03d}Z", record.levelname, self._service_name, record.name]
        parts.append(_one_line(record.getMessage()))
        fields: dict[str, object] = getattr(record, "fields", {})
        parts += [f"{name}={_field_value(value)}" for name, value in fields.items()]
        if record.exc_info:
            parts.append(f"exception={json.dumps(self.formatException(record.exc_info))}")
        return " ".join(parts)


class _FieldAdapter(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(kwargs.get("extra") or {})
        extra["fields"] = {**(self.extra or {}), **extra.get("fields", {})}
        return msg, {**kwargs, "extra": extra}


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") if "\n" in text or "\r" in text else text


def _field_value(value: object) -> str:
    text = str(value)
    return text if text and not any(c in text for c in ' \n\r"=') else json.dumps(text)
