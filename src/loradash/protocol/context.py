"""What a handler of requests is given beside the request, and what it returns."""

from dataclasses import dataclass
from typing import Any

Reply = dict[str, Any]
"""JSON-ready; an error is exactly ``{"error": text}``."""


@dataclass(frozen=True)
class Context:
    """What a handler may need to know of where its request came from."""

    request_id: str
    base_url: str = ""
    idempotency_key: str = ""
    """Makes the same process of the same request, if the client gives no key of its own."""
    follows_links: bool = True
    """Whether a file that is too large for a reply may come as a link to it."""
