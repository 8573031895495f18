"""Structured logs: events with fields, for people on a terminal and for programs in files.

structlog makes the events and the standard library carries them, so that records of uvicorn and
other libraries take the same way. What is bound with `bound` (a request, a process) stands in every
event of that context. Secrets are masked before anything is written.

The program's modules say ``log = structlog.get_logger("loradash.noun")`` and
``log.info("process_taken", process_id=..., device=...)``.
"""

import contextlib
import json
import logging
import logging.handlers
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from loradash.errors import InvalidSettings
from loradash.telemetry.masking import cleaned, without_secrets
from loradash.telemetry.repeats import Repeats, WrittenOnce
from loradash.visible_text import plain_json, visible, visible_lines

REQUESTS_LOGGER = "loradash.requests"

APP_FILE, REQUESTS_FILE, ERRORS_FILE = "app.log", "requests.log", "errors.log"
BACKUPS = 5

_MAX_FILE_BYTES = 10_000_000
_MAX_TRACEBACK = 20_000
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_OURS = ("loradash", "uvicorn")  # others speak from WARNING on: botocore's DEBUG has secrets in it

_lock = threading.RLock()
_handlers: list[logging.Handler] = []


def configure(log_folder: Path | None, level: str, *, as_json: bool, stream: TextIO) -> None:
    """Send all logs to ``stream``, and to files in ``log_folder`` if there is one.

    Replaces an earlier configuration. The files belong to one program at a time, since each
    rotates them by itself. Raises `InvalidSettings` for an unknown level or a folder that can't be
    written.
    """
    if level.upper() not in _LEVELS:
        raise InvalidSettings(
            f"log level {level!r} is unknown", remedy="Choose debug, info, warning or error."
        )
    with _lock:
        files = _file_handlers(log_folder) if log_folder else []
        close()
        _handlers.extend([_stream_handler(stream, as_json), *files])
        once = WrittenOnce(Repeats(), {REQUESTS_LOGGER: Repeats(at_once=100, a_second=10)})
        for handler in _handlers:
            handler.addFilter(once)
        _take_over(level.upper())


def close() -> None:
    """Close the files and undo what `configure` did; nothing happens if it did nothing."""
    with _lock:
        if not _handlers:
            return
        for handler in _handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        _handlers.clear()
        logging.getLogger().setLevel(logging.WARNING)
        for name in _OURS:
            logging.getLogger(name).setLevel(logging.NOTSET)
        structlog.reset_defaults()


@contextlib.contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Let every event of this context carry ``fields``. A thread begins without any."""
    with structlog.contextvars.bound_contextvars(**fields):
        yield


@contextlib.contextmanager
def rotation_paused() -> Iterator[None]:
    """Keep our own handlers from writing and from renaming their files meanwhile."""
    with _lock, contextlib.ExitStack() as stack:
        for handler in _handlers:
            handler.acquire()
            stack.callback(handler.release)
        yield


class _StreamHandler(logging.StreamHandler[TextIO]):
    """Drops lines that the stream doesn't take: a terminal that is closed, a disk that is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Say nothing of what can't be written; anything else is a bug, and told as usual."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _FileHandler(logging.handlers.RotatingFileHandler):
    """Drops lines for which there is no room."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """See `_StreamHandler.handleError`."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close, with or without what still waits to be written."""
        with contextlib.suppress(OSError):
            super().close()


def _take_over(level: str) -> None:
    root = logging.getLogger()
    root.setLevel(max(logging.getLevelNamesMapping()[level], logging.WARNING))
    for handler in _handlers:
        root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)  # uvicorn may have set up its own already
        logger.handlers.clear()
        logger.propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_preparation(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # loggers of modules outlive a configuration
    )


def _preparation() -> list[Processor]:
    """What every event goes through, whether it is ours or another library's."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _clean,
    ]


def _stream_handler(stream: TextIO, as_json: bool) -> logging.Handler:
    handler = _StreamHandler(stream)
    if as_json:
        handler.setFormatter(_json_lines())
    else:
        console = structlog.dev.ConsoleRenderer(colors=stream.isatty())
        handler.setFormatter(_formatter(_printable, console))
    return handler


def _file_handlers(folder: Path) -> list[logging.Handler]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        app, requests, errors = (
            _FileHandler(
                folder / name,
                maxBytes=_MAX_FILE_BYTES,
                backupCount=BACKUPS,
                encoding="utf-8",
                errors="backslashreplace",  # names of files needn't be Unicode
            )
            for name in (APP_FILE, REQUESTS_FILE, ERRORS_FILE)
        )
    except OSError as error:
        raise InvalidSettings(
            f"log folder {folder}: {error.strerror or error}",
            remedy="Set WORKSPACE_PATH to a folder that can be written.",
        ) from error
    requests.addFilter(logging.Filter(REQUESTS_LOGGER))
    app.addFilter(_not_just_a_request)  # who asks often must not rotate away what happened
    errors.setLevel(logging.ERROR)
    for handler in (app, requests, errors):
        handler.setFormatter(_json_lines())
    return [app, requests, errors]


def _not_just_a_request(record: logging.LogRecord) -> bool:
    return record.name != REQUESTS_LOGGER or record.levelno >= logging.WARNING


def _json_lines() -> logging.Formatter:
    return _formatter(structlog.processors.JSONRenderer(_harmless_json, ensure_ascii=False))


def _harmless_json(value: Any, **options: Any) -> str:
    """JSON that can also be shown at a terminal; other letters than ASCII's stay readable."""
    return plain_json(json.dumps(value, **options))


def _formatter(*rendering: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_preparation(),
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )


def _clean(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Mask secrets and bound the size of each field. The end of a traceback says most."""
    meta = {name: event.pop(name) for name in ("_record", "_from_structlog") if name in event}
    traceback = event.pop("exception", None)
    clean = {name: cleaned(name, value) for name, value in event.items()}
    if traceback is not None:
        clean["exception"] = without_secrets(str(traceback)[-_MAX_TRACEBACK:], _MAX_TRACEBACK)
    return {**clean, **meta}


def _printable(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Take control characters from texts, so that none can play with the terminal or forge lines.

    Line ends stay in tracebacks; in fields the renderer quotes them.
    """
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = visible_lines(value)
    event["event"] = visible(str(event.get("event", "")))
    return event
