"""The changes of documents in the object store since their first version.

Documents are upgraded as they are read, and written in their new form with the next change: a
bucket has no lock. To change what a document holds so that a reader has to be told, append an
`Upgrade` whose function turns the JSON of version N - 1 into that of version N. Fields that are
only added need none: readers that don't know them keep them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from loradash.errors import RegistryUnavailable

FIRST_VERSION = 1  # of documents that have no number, too
VERSION_NAME, USABLE_SINCE_NAME = "schema", "schema_usable_since"

Json = Mapping[str, Any]


class Upgrade(NamedTuple):
    """One numbered change of what a document holds."""

    version: int
    """The document's version after it."""
    usable_since: int
    """The oldest version whose programs can go on reading and writing such a document."""
    apply: Callable[[Json], Json]


UPGRADES: tuple[Upgrade, ...] = ()
"""All of them, in order and without gaps."""


def newest_versions() -> dict[str, int]:
    """Return what a new document says of its version."""
    return {
        VERSION_NAME: FIRST_VERSION + len(UPGRADES),
        USABLE_SINCE_NAME: max((one.usable_since for one in UPGRADES), default=FIRST_VERSION),
    }


def upgraded(document: Json) -> Json:
    """Return a document in the form of the newest version; a newer one as it is.

    Raises `RegistryUnavailable` for a newer one that this loradash can't work with.
    """
    newest = newest_versions()
    version = document.get(VERSION_NAME, FIRST_VERSION)
    if not isinstance(version, int):
        return document  # the model says what is wrong with it
    if version > newest[VERSION_NAME]:
        if document.get(USABLE_SINCE_NAME, version) > newest[VERSION_NAME]:
            raise RegistryUnavailable(
                f"a record in the object store was written by a newer loradash: its schema is "
                f"{version} and this one knows {newest[VERSION_NAME]}",
                remedy="Update loradash on this machine.",
            )
        return document
    for upgrade in UPGRADES[version - FIRST_VERSION :]:
        document = upgrade.apply(document)
    return {**document, **newest}
