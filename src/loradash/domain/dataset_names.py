"""Folders of datasets whose names are any text: read by people, and another one for each name.

Object stores and configs want plain letters, so a name is written with them: ``gęś`` becomes
``ges``. Different names may become one folder; then the later one gets a mark made of its name. Who
a folder belongs to is what its manifest says.
"""

import hashlib
import re
import unicodedata
from typing import NamedTuple

from anyascii import anyascii

from loradash.domain.dataset_manifest import DatasetManifest

_NOT_IN_FOLDER = re.compile(r"[^a-zA-Z0-9._-]+")
_MARK_DIGITS = 8
_MAX_CHARACTERS = 150


class Folders(NamedTuple):
    """The folder that a name gets, and the one that it gets if that is another name's."""

    plain: str
    marked: str


def folders_of(name: str) -> Folders:
    """Return the folders of a name, which are always the same ones."""
    mark = hashlib.sha256(composed(name).encode()).hexdigest()[:_MARK_DIGITS]
    plain = folder_from(name) or "dataset"
    marked = f"{plain[: _MAX_CHARACTERS - _MARK_DIGITS - 1].rstrip('-')}-{mark}"
    return Folders(plain if folder_from(name) else marked, marked)


def folder_from(name: str) -> str:
    """Write a name with plain letters; '' if nothing of it can be used."""
    return _plain(anyascii(composed(name)))


def owner_of(folder: str, manifest: DatasetManifest) -> str:
    """Return the name that a dataset's folder was made of; the folder itself if it was named so.

    Manifests of earlier releases don't say it, but have the dataset's name, from which other
    letters were left out.
    """
    if manifest.original_name:
        return manifest.original_name
    name = manifest.training_name
    return name if folder in (folder_from(name), _plain(name)) else folder


def composed(name: str) -> str:
    """Return the form in which names are compared: some systems write letters in several parts."""
    return unicodedata.normalize("NFC", name)


def _plain(text: str) -> str:
    return _NOT_IN_FOLDER.sub("-", text).lstrip("._-")[:_MAX_CHARACTERS].rstrip("-")
