"""What the libraries warn of, told to the user as `Warned` events instead of only to a log.

diffusers, transformers and peft go on with a line in their log where weights have no place, a text
is cut off or a part keeps its random start. Nobody reads that line, so the result is wrong without
a word. Here every such line becomes an event, once a run, except those that are known to say
nothing about the result.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from loradash.engines.diffusers.child.emitter import Emitter

CODE = "library_warning"
MAX_WARNINGS = 20
"""Events of one run: a library that complains about each tensor must not flood the record."""

_MAX_TEXT = 500
_LIBRARIES = (
    "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub", "torch",
)  # fmt: skip
# Lines that say nothing about the result, each with the reason why.
_WITHOUT_MEANING = tuple(
    re.compile(pattern)
    for pattern in (
        # Preprocessing of images for a safety checker or a vision encoder: neither is loaded.
        r"requires torchvision \(not installed\); falling back",
        # Said of every autoencoder that is moved to float32, with an empty list of modules.
        r"There are modules in \w+ that should be kept in float32: \[\]",
        # `base_model` leaves the safety checker out on purpose.
        r"You have disabled the safety checker",
        # Several adapters beside each other are what the generator wants.
        r"Already found a `peft_config` attribute in the model",
        # Told with its place and length by `text_length`.
        r"Token indices sequence length is longer than",
        r"The following part of your input was truncated because CLIP",
        # Gradient checkpointing and caches exclude each other: the library chooses what we want.
        r"`use_cache=True` is incompatible with gradient checkpointing",
    )
)


class LibraryWarnings(logging.Handler):
    """Turns what libraries log or warn of into events of one run."""

    def __init__(self, emitter: Emitter) -> None:
        super().__init__(logging.WARNING)
        self._emitter = emitter
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Forward a line of a library's log."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that don't fit the library's own text
            text = str(record.msg)
        self.tell(record.name.partition(".")[0], text)

    def tell(self, library: str, text: str) -> None:
        """Emit the warning unless it was told in this run, has no meaning, or is one too many."""
        text = " ".join(text.split())
        if text in self._seen or any(pattern.search(text) for pattern in _WITHOUT_MEANING):
            return
        self._seen.add(text)
        if len(self._seen) <= MAX_WARNINGS:
            self._emitter.warn(CODE, f"{library}: {_shortened(text)}")
        elif len(self._seen) == MAX_WARNINGS + 1:
            self._emitter.warn(CODE, "the libraries warn of more than that; see the log")


@contextmanager
def library_warnings(emitter: Emitter) -> Iterator[None]:
    """Forward what libraries warn of, in this process, for as long as the context lasts.

    Their lines go to the log as before. What speaks to programmers (deprecations) isn't forwarded.
    """
    handler = LibraryWarnings(emitter)
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        if not logger.isEnabledFor(logging.WARNING):  # a variable of the environment may mute it
            logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            show = warnings.showwarning

            def forward(
                message: Warning | str,
                category: type[Warning],
                filename: str,
                lineno: int,
                file: TextIO | None = None,
                line: str | None = None,
            ) -> None:
                show(message, category, filename, lineno, file, line)
                if issubclass(category, UserWarning | RuntimeWarning):
                    handler.tell(_library_of(filename), str(message))

            warnings.showwarning = forward
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _library_of(filename: str) -> str:
    """Name of the package that a warning's source file belongs to."""
    parts = filename.replace("\\", "/").split("/")
    if "site-packages" in parts[:-1]:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return "loradash" if "loradash" in parts else "python"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 4].rstrip()} ..."
