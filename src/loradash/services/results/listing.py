"""Lists of results. What exists is what the registry lists; nothing is searched for."""

from collections import Counter
from collections.abc import Sequence

from loradash.domain.artifacts import ADAPTER_KINDS, LISTED_KINDS
from loradash.registry.cursors import ArtifactPlace
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.services.results.names import file_names, short_id
from loradash.services.results.presence import Presence
from loradash.services.results.stored import StoredResults
from loradash.services.results.views import FilePage, ModelPage, ModelView
from loradash.storage import keys
from loradash.storage.store import ObjectStore


class ResultLists:
    """Lists what processes have produced; thread-safe."""

    def __init__(
        self, registry: ProcessRegistry, store: ObjectStore, stored: StoredResults
    ) -> None:
        self._registry = registry
        self._stored = stored
        self._presence = Presence(store)

    def models(self, limit: int, cursor: str) -> ModelPage:
        """Return the finished adapters, the newest first."""
        listed, next_cursor = self._registry.newest_artifacts(
            ADAPTER_KINDS, limit=limit, before=cursor
        )
        found, missing = self._presence.split(listed)
        views = [
            self._model(entry, name) for entry, name in zip(found, file_names(found), strict=True)
        ]
        shown = Counter(view.name.casefold() for view in views)
        return ModelPage(
            models=tuple(
                view.model_copy(update={"name": f"{view.name} ({short_id(entry)})"})
                if shown[view.name.casefold()] > 1
                else view
                for view, entry in zip(views, found, strict=True)
            ),
            next_cursor=next_cursor or None,
            missing=tuple(entry.key for entry in missing),
        )

    def model(self, entry: StoredArtifact) -> ModelView:
        """Return one finished adapter as `models` lists it, with the name it is saved under."""
        return self._model(entry, self._stored.saved_as(entry))

    def files(self, path: str, limit: int, cursor: str, *, overview: bool = False) -> FilePage:
        """Return adapters and images, of all processes or below a path such as results/<id>.

        An ``overview`` is for a client that shows one page only: many new images don't hide the
        adapters that are older, which come too.
        """
        found, next_cursor = self._listed(path, limit, cursor, overview)
        there, missing = self._presence.split(found)
        return FilePage(
            files=tuple(
                self._stored.view(entry, name)
                for entry, name in zip(there, file_names(there), strict=True)
            ),
            next_cursor=next_cursor or None,
            missing=tuple(entry.key for entry in missing),
        )

    def _listed(
        self, path: str, limit: int, cursor: str, overview: bool
    ) -> tuple[Sequence[StoredArtifact], str]:
        prefix = self._stored.key_of(path).rstrip("/") if path else ""
        if prefix and (process_id := keys.process_of(f"{prefix}/")):
            return self._below(prefix, process_id, limit, cursor)
        if prefix not in ("", keys.all_results()):
            return [], ""
        found, next_cursor = self._registry.newest_artifacts(
            LISTED_KINDS, limit=limit, before=cursor
        )
        if not (overview and next_cursor):
            return found, next_cursor
        adapters, _ = self._registry.newest_artifacts(ADAPTER_KINDS, limit=limit, before="")
        return [*found, *(entry for entry in adapters if entry not in found)], next_cursor

    def _below(
        self, prefix: str, process_id: str, limit: int, cursor: str
    ) -> tuple[Sequence[StoredArtifact], str]:
        """One page of a process's files, by key."""
        after = ArtifactPlace.read(cursor).key if cursor else ""
        found = [
            entry
            for entry in self._registry.artifacts(process_id, LISTED_KINDS)
            if any(
                f"{name}/".startswith(f"{prefix}/")
                for name in (entry.key, keys.published(entry.key))
            )
            and entry.key > after
        ]
        if len(found) <= limit:
            return found, ""
        return found[:limit], ArtifactPlace.of(found[limit - 1]).cursor

    def _model(self, entry: StoredArtifact, filename: str) -> ModelView:
        record = self._registry.get(entry.process_id)
        return ModelView(
            file=self._stored.view(entry, filename),
            name=record.name,
            steps=record.summary.get("steps"),
            trigger_word=record.summary.get("trigger_word"),
            base_model=record.summary.get("base_model"),
        )
