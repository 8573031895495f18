"""Secrets stay out of logs and replies: values under telling names, and telling parts of texts."""

import math
import re
from collections.abc import Mapping

MASK = "***"
MAX_TEXT = 2_000

_SECRET_NAME = re.compile(
    r"^aws_|token$|secret|passw(or)?d|api_?key|access_?key|private_?key"
    r"|authorization|credential|cookie|signature"
)
# Query strings of presigned URLs and of event streams, headers, and passwords within URLs.
_SECRET_TEXT = re.compile(
    r"(?P<name>(?:token|secret|password|api_?key|signature|credential)=)[^\s&\"']+"
    r"|(?P<scheme>\bbearer )[\w.~+/=-]{8,}"
    r"|(?P<user>://[^\s:/@]{0,200}:)[^\s/@]{1,200}(?=@)",
    re.IGNORECASE,
)
_MAX_DEPTH = 6


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is probably a secret; ``X-Api-Key`` is ``x_api_key``."""
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


def without_secrets(text: str, max_length: int = MAX_TEXT) -> str:
    """Return the text cut to a length, with what looks like a secret masked."""
    cut = text if len(text) <= max_length else f"{text[:max_length]}… ({len(text)} characters)"
    return _SECRET_TEXT.sub(_masked, cut)


def cleaned(name: str, value: object, depth: int = 0) -> object:
    """Return a value as JSON can hold it, without secrets and of bounded length.

    Empty values stay, since it helps to see that a secret isn't set.
    """
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return MASK if value != "" else value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {str(key): cleaned(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [cleaned("", item, depth + 1) for item in value]
    return without_secrets(str(value))


def _masked(match: re.Match[str]) -> str:
    return f"{match['name'] or match['scheme'] or match['user']}{MASK}"
