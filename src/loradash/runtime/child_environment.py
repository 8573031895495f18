"""What an engine inherits of our environment: everything but secrets that it has no use for.

An engine reads models and datasets that strangers made. It works on local files; of all secrets it
needs the hub's token alone, to download base models.
"""

import re
from collections.abc import Mapping

from loradash.telemetry.masking import is_secret_name

# Credentials with the addresses that they are for, and names that ours and others' secrets go by.
_NOT_FOR_ENGINES = re.compile(
    r"(AWS|S3|RUNPOD|AZURE)_.*|DATABASE_URL|.*_(KEY|DSN|WEBHOOK)|PGPASS.*"
)
_HUB_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"})


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that an engine may see."""
    return {
        name: value
        for name, value in environment.items()
        if name in _HUB_TOKENS
        or not (_NOT_FOR_ENGINES.fullmatch(name.upper()) or is_secret_name(name))
    }
