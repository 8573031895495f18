"""How configs, requests and commands name a dataset: a folder, or one that is stored.

A plain name may be either: for a command a folder of that name comes first, for a request, which
knows nothing of the server's folders, it is a stored dataset. ``folder:`` and ``dataset:`` before
it say which is meant, as does a path that begins with ``/``, ``~``, ``./`` or ``../``.
"""

from typing import Literal, NamedTuple

from loradash.domain.addresses import is_address

FOLDER_PREFIX = "folder:"
STORED_PREFIX = "dataset:"


class DatasetReference(NamedTuple):
    """A dataset as it was named, without the word that says which kind it is."""

    kind: Literal["folder", "stored", "either"]
    text: str


def parse_dataset_reference(text: str) -> DatasetReference:
    """Return what is meant by a config's ``folder_path``."""
    if text.startswith(FOLDER_PREFIX):
        return DatasetReference("folder", text.removeprefix(FOLDER_PREFIX))
    if text.startswith(STORED_PREFIX):
        return DatasetReference("stored", text.removeprefix(STORED_PREFIX))
    if text.startswith(("/", "~", "./", "../")) or text in (".", ".."):
        return DatasetReference("folder", text)
    return DatasetReference("stored" if is_address(text) else "either", text)
