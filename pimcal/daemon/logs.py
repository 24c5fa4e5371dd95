"""The daemon's log on stderr: a line for each message, or a JSON object."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal, TextIO

from pimcal.shown import one_line

LogFormat = Literal["lines", "json"]


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00+00:00 WARNING message`, whatever line breaks the message has."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(f"{_time(record)} {record.levelname} {' | '.join(_message(record).splitlines())}")


class JsonFormatter(logging.Formatter):
    """An object with `time`, `level`, `logger`, `message`."""

    def format(self, record: logging.LogRecord) -> str:
        about = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({**about, "message": _message(record)})


def log_to(stream: TextIO, log_format: LogFormat) -> None:
    """From now on all that the program logs, warnings among it, goes to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("pimcal").setLevel(logging.INFO)
    logging.captureWarnings(True)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")


def _message(record: logging.LogRecord) -> str:
    told = record.getMessage()
    return f"{told}\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else told
