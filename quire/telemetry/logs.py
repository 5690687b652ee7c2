"""Structured one-line logs on stderr; facts ride along as `extra={...}` and appear as key=value."""

import logging
import sys

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

_CHATTY = ("httpx", "httpx2")
"""HTTP clients of huggingface_hub: they note every request, of which fetching a model makes dozens."""


def configure_logging(service_name: str, level: int = logging.INFO) -> None:
    """Sends the process's logs to stderr, one line each, with `service_name` in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_KeyValueFormatter(service_name))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _KeyValueFormatter(logging.Formatter):
    def __init__(self, service_name: str) -> None:
        super().__init__("%(asctime)s %(levelname)s")
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={value}" for key, value in record.__dict__.items() if key not in _STANDARD)
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        line = f"{when} {record.levelname} {self._service_name} {record.getMessage()}{facts}"
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"
