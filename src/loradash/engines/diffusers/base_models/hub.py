"""Base models on the hub: read by their small files and by the beginnings of the large ones.

The hub's library comes with the engine's packages and needs no torch. Where it isn't installed, as
on a control plane, nobody asks the hub; the worker will.
"""

import re
import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from loradash.domain.sizes import size_text
from loradash.engines.diffusers.base_models.findings import Finding, invalid_base_model
from loradash.engines.diffusers.base_models.hub_errors import told
from loradash.engines.diffusers.base_models.model_files import FolderFiles, ModelFiles
from loradash.errors import LoradashError

TIMEOUT_S = 10.0
_HEADER_BYTES = 128 * 1024  # holds the header of most files, so that one request is enough
_SPARE_BYTES = 1_000_000_000
_SMALL = (".json", ".txt", ".model")
_OFF = Finding(
    "downloads are off (LORADASH_OFFLINE or HF_HUB_OFFLINE)",
    "allow downloads once so that it gets there, or give a local folder",
)
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


def can_ask() -> bool:
    """Whether the hub's library is installed."""
    return find_spec("huggingface_hub") is not None


@dataclass(frozen=True)
class HubModel:
    """A repository at one of its commits."""

    name: str
    files: ModelFiles
    revision: str
    """Commit hash."""
    folder: Path | None = None
    """In the hub's cache, if only that is looked at."""
    is_newest: bool = False
    """Whether the commit was found as the newest, not asked for."""
    not_asked: Finding | None = None
    """Why only the copy on this machine is looked at; None if the hub itself is."""

    @property
    def warning(self) -> str:
        """What the user should know, or ''."""
        if self.not_asked is None or self.not_asked is _OFF:
            return ""
        return f"base model {self.name}: {self.not_asked.text}; the copy in the cache is used"


def open_model(name: str, *, revision: str | None, offline: bool) -> HubModel:
    """Find a repository on the hub, or in the hub's cache if the hub can't or mustn't be asked.

    Raises `InvalidBaseModel` with the cause.
    """
    from huggingface_hub import HfApi

    cached = _cached(name, revision)
    if offline:
        if cached is None:
            text = f"it isn't in the hub's cache on this machine, and {_OFF.text}"
            raise invalid_base_model(name, [Finding(text, _OFF.remedy)])
        return HubModel(name, FolderFiles(cached), cached.name, cached, not_asked=_OFF)
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        sizes = {one.rfilename: one.size for one in info.siblings or ()}
        if not info.sha:
            raise ValueError("an answer without a commit")
    except LoradashError:
        raise
    except Exception as error:
        finding = told(error, name)
        if cached is None:
            raise invalid_base_model(name, [finding]) from error
        return HubModel(name, FolderFiles(cached), cached.name, cached, not_asked=finding)
    files = HubFiles(name, info.sha, sizes)
    return HubModel(name, files, info.sha, is_newest=revision is None)


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a repository in the hub's cache, which may lack files."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "model_index.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


@dataclass
class HubFiles:
    """`ModelFiles` of a commit: small files go into the hub's cache, large ones are only begun.

    Errors of the hub's library are raised as `InvalidBaseModel`.
    """

    repository: str
    revision: str
    sizes: dict[str, int | None]
    _begun: dict[str, bytes] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        """See `ModelFiles.names`."""
        return frozenset(self.sizes)

    def size(self, name: str) -> int:
        """See `ModelFiles.size`; asks for it if the repository's list doesn't tell."""
        size = self.sizes.get(name)
        if size is None and not self._is_small(name):
            self.start(name, 1)
            size = self.sizes.get(name)
        if size is None:
            size = self._fetched(name).stat().st_size
            self.sizes[name] = size
        return size

    def start(self, name: str, size: int) -> bytes:
        """See `ModelFiles.start`."""
        if self._is_small(name):
            with self._fetched(name).open("rb") as file:
                return file.read(size)
        if len(self._begun.get(name, b"")) < min(size, self.sizes.get(name) or size):
            self._begun[name] = self._range(name, max(size, _HEADER_BYTES))
        return self._begun[name][:size]

    def _is_small(self, name: str) -> bool:
        return name.endswith(_SMALL)

    def _fetched(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(
                hf_hub_download(
                    self.repository, name, revision=self.revision, etag_timeout=TIMEOUT_S
                )
            )
        except Exception as error:
            finding = told(error, self.repository)
            raise invalid_base_model(
                self.repository, [Finding(f"{name}: {finding.text}", finding.remedy)]
            ) from error

    def _range(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file, also from a server that sends all of it."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.repository, name, revision=self.revision)
        headers = {**build_hf_headers(), "Range": f"bytes=0-{size - 1}"}
        data = bytearray()
        try:
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S
            ) as response:
                if response.status_code == 416:  # an empty file has no first byte
                    self.sizes[name] = 0
                    return b""
                hf_raise_for_status(response)
                total = _TOTAL.fullmatch(response.headers.get("Content-Range", ""))
                length = total[1] if total else response.headers.get("Content-Length", "")
                if length.isdecimal():
                    self.sizes[name] = int(length)
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) >= size:
                        break
        except Exception as error:
            finding = told(error, self.repository)
            raise invalid_base_model(
                self.repository, [Finding(f"{name}: {finding.text}", finding.remedy)]
            ) from error
        return bytes(data[:size])


def no_room(files: HubFiles, needed: list[str]) -> Finding | None:
    """Say that what is still to be downloaded doesn't fit; None if it does, or isn't known."""
    from huggingface_hub import constants, try_to_load_from_cache

    missing = [
        files.sizes.get(name) or 0
        for name in needed
        if not isinstance(
            try_to_load_from_cache(files.repository, name, revision=files.revision), str
        )
    ]
    cache = Path(constants.HF_HUB_CACHE)
    there = next((one for one in (cache, *cache.parents) if one.exists()), cache)
    free = shutil.disk_usage(there).free
    if sum(missing) == 0 or sum(missing) + min(_SPARE_BYTES, sum(missing)) <= free:
        return None
    return Finding(
        f"{size_text(sum(missing))} are to be downloaded to {cache}, where {size_text(free)} are "
        "free",
        "free space there, or set HF_HOME to a folder on a larger disk",
    )
