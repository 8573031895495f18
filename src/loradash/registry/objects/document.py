"""The document of a process: its record, and the names of the objects that hold all the rest."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loradash.domain.process import ProcessRecord
from loradash.errors import RegistryUnavailable
from loradash.registry.objects.upgrades import (
    USABLE_SINCE_NAME,
    VERSION_NAME,
    newest_versions,
    upgraded,
)
from loradash.registry.registry import Change

Model = TypeVar("Model", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class _Kept(BaseModel):
    """Fields of a newer loradash stay when an older one writes the document again."""

    model_config = ConfigDict(
        frozen=True, extra="allow", ser_json_inf_nan="constants",
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True,
    )  # fmt: skip


class Chunk(_Frozen):
    """Some rows that follow each other: the object that holds them, and which they are."""

    key: str
    first: int
    last: int
    count: int


class Parts(_Kept):
    """The objects that hold what belongs to a process. None of them is ever written again."""

    artifacts: str = ""
    metrics: tuple[Chunk, ...] = ()
    log: tuple[Chunk, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all of them."""
        keys = {chunk.key for chunk in (*self.metrics, *self.log)}
        return frozenset(keys | {self.artifacts} if self.artifacts else keys)


class Document(_Kept):
    """One version of what is known of a process.

    The nonce is its own, so no two versions have the same content, and so the same etag; and a
    writer whose answer got lost finds by it whether its version came to be, even if others have
    followed: some ``ancestors`` of a version are named in it.
    """

    version: int = Field(alias=VERSION_NAME)
    usable_since: int = Field(alias=USABLE_SINCE_NAME)
    nonce: str
    record: ProcessRecord
    parts: Parts = Parts()
    ancestors: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, document: Any) -> Any:
        return upgraded(document) if isinstance(document, dict) else document

    @classmethod
    def first(cls, record: ProcessRecord) -> Self:
        """Return the first version of a process."""
        return cls.model_validate({"nonce": new_nonce(), "record": record, **newest_versions()})

    def descends_from(self, nonce: str) -> bool:
        """Whether this is that version, or was made of it."""
        return nonce == self.nonce or nonce in self.ancestors

    def with_ancestor(self, most: int) -> tuple[str, ...]:
        """Return the ancestors of a version that is made of this one."""
        return (*self.ancestors, self.nonce)[-most:]

    @property
    def data(self) -> bytes:
        """The content of its object."""
        return self.model_dump_json().encode()


@dataclass(frozen=True)
class Edit:
    """What becomes of a document: of its record and, if it has to do with them, of its parts.

    Both may be called more than once; the caller deletes a part that no document names in the end.
    With ``renews`` there is a new version in any case: whoever was about to replace the present
    one can't any more.
    """

    change: Change
    write: Callable[[Parts], Parts] | None = None
    renews: bool = False

    def of(self, document: Document, ancestors: tuple[str, ...]) -> Document | None:
        """Return the next version, or None if it is no other."""
        record = self.change(document.record)
        parts = self.write(document.parts) if self.write else document.parts
        if not self.renews and record == document.record and parts == document.parts:
            return None
        fields = {"nonce": new_nonce(), "record": record, "parts": parts, "ancestors": ancestors}
        return document.model_copy(update=fields)


class Damaged(RegistryUnavailable):
    """An object of the registry holds something else than it should."""


class PartGone(Exception):
    """A part that a document names isn't there any more: the document was replaced meanwhile."""


def new_nonce() -> str:
    """Return a random text that is unique."""
    return secrets.token_hex(10)


def parsed(model: type[Model], data: bytes) -> Model:
    """Return what an object holds."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise Damaged(
            f"the registry contains a {model.__name__} that can't be read",
            remedy="If a newer loradash wrote it, update this one.",
        ) from error
