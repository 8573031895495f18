"""All that can be asked of results, put together: lists, downloads, deletion."""

from typing import NamedTuple

from loradash.domain.addresses import NO_ADDRESS, Address
from loradash.engines.catalogue import Engines
from loradash.registry.registry import ProcessRegistry
from loradash.runtime.workspace import Workspace
from loradash.services.results.deletion import ResultDeletion
from loradash.services.results.downloads import ResultDownloads
from loradash.services.results.links import Links
from loradash.services.results.listing import ResultLists
from loradash.services.results.stored import StoredResults
from loradash.storage.store import ObjectStore

_URL_EXPIRES_S = 3600


class Results(NamedTuple):
    """Files that processes have produced."""

    stored: StoredResults
    lists: ResultLists
    downloads: ResultDownloads
    deletion: ResultDeletion


def make_results(
    registry: ProcessRegistry,
    store: ObjectStore,
    workspace: Workspace,
    max_inline_bytes: int,
    address: Address = NO_ADDRESS,
    url_expires_s: int = _URL_EXPIRES_S,
    engines: Engines | None = None,
) -> Results:
    """Return what answers questions about the results in this store, whose keys lie at ``address``.

    Signed links are good for ``url_expires_s``.
    """
    stored = StoredResults(registry, address)
    return Results(
        stored,
        ResultLists(registry, store, stored),
        ResultDownloads(
            registry, store, workspace, stored, Links(store, url_expires_s), max_inline_bytes
        ),
        ResultDeletion(registry, store, workspace, engines),
    )
