"""Documents in a store that ignores conditions: each has one writer, who has won its epoch.

A document is only ever replaced by the writer of its epoch: the creator first (epoch 0,
``processes/<id>.json``). Who else wants to change it claims the next epoch with an empty object,
waits ``settle_s`` and lists the claims. The smallest by (time as the store lists it, nonce) wins,
applies its change to the newest document and writes the result under the epoch's own key; the
document of the highest epoch is the one that counts, so a former writer's late put shows nowhere.

A writer lists after each put. If nobody had claimed a later epoch by then, whoever does will read
what was put. Otherwise it waits for the later document and looks whether that was made of its own.

**This holds on an assumption of time**: a put, from its start to its being listed, and a list take
less than ``settle_s``; times in lists come from the server; and who has won an epoch writes its
document within `_STALE_SETTLES` times ``settle_s``, after which it is taken for dead.
"""

import random
import threading
import time
from collections.abc import Sequence

from cachetools import LRUCache

from loradash.errors import NotFound, RegistryUnavailable
from loradash.registry.objects.backend import Backend
from loradash.registry.objects.document import Document, Edit, PartGone, new_nonce
from loradash.registry.objects.documents import MOST_HELD, TRIES, DocumentCache, Locks
from loradash.registry.objects.standing import FIRST, CancelMark, Epoch, Standing
from loradash.registry.registry import no_such_process, process_exists
from loradash.storage import keys
from loradash.storage.store import ObjectInfo

_ANCESTORS = 32
_STALE_SETTLES = 15
_WEAK_ETAG_S = 3.0
_CLOCKS_DIFFER_S = 3600.0


class ClaimedDocuments:
    """Documents whose writers agree by claims, as this module describes."""

    def __init__(self, backend: Backend, settle_s: float) -> None:
        self._backend = backend
        self._settle_s = settle_s
        self._stale_s = _STALE_SETTLES * settle_s
        self._cache = DocumentCache(backend)
        self._held: LRUCache[str, tuple[Epoch, Document]] = LRUCache(MOST_HELD)
        self._guard = threading.Lock()
        self._locks = Locks()

    def create(self, document: Document, *, contested: bool) -> None:
        """See `Documents.create`; if it's ``contested``, there is a claim for epoch 0 too."""
        process_id = document.record.id
        with self._locks.of(process_id):
            claim = self._first(process_id) if contested else None
            try:
                if self._exists(process_id):
                    raise process_exists(process_id)
                self._backend.put(keys.process_record(process_id), document.data)
            finally:
                if claim is not None:
                    self._backend.discard(claim.claim_key(process_id))
            self._hold(process_id, FIRST, document)

    def _first(self, process_id: str) -> Epoch:
        """Win the right to create a process. Raises `ConflictingState` if another program does."""
        give_up_s = time.monotonic() + 2 * self._stale_s
        while not self._exists(process_id) and time.monotonic() < give_up_s:
            epoch = Epoch(0, new_nonce())
            self._backend.put(epoch.claim_key(process_id), b"")
            time.sleep(self._settle_s)
            standing = self._standing(process_id)
            mine, rivals = standing.claims.get(epoch), standing.before(epoch)
            # By the store's clock: who came first and hasn't created it by now has died.
            if mine and all(mine.modified_s - one.modified_s > self._stale_s for one in rivals):
                return epoch
            self._backend.discard(epoch.claim_key(process_id))
        raise process_exists(process_id)

    def _exists(self, process_id: str) -> bool:
        try:
            self._backend.head(keys.process_record(process_id))
        except NotFound:
            return False
        return True

    def load(self, process_id: str) -> Document:
        """See `Documents.load`."""
        _, document, mark = self._look(process_id)
        return _marked(document, mark)

    def update(self, process_id: str, edit: Edit) -> Document:
        """See `Documents.update`."""
        with self._locks.of(process_id):
            for _ in range(TRIES):
                try:
                    found = self._try(process_id, edit)
                except PartGone:
                    continue
                if found is not None:
                    return found
                time.sleep(self._settle_s * random.uniform(0.2, 1.2))
        raise RegistryUnavailable(
            f"process {process_id} is being changed by too many other programs",
            remedy="Try again, with fewer workers.",
        )

    def listed(self, process_id: str, infos: Sequence[ObjectInfo]) -> Document:
        """See `Documents.listed`."""
        standing = Standing.of(infos)
        info = standing.records[standing.epoch]
        # A folder's etag is made of times and sizes: what was just replaced may look as before.
        # How old it is by a list shows only if that is more than two clocks may differ.
        is_old = time.time() - info.modified_s > _CLOCKS_DIFFER_S
        try:
            document = self._cache.read(info, settled_s=0.0 if is_old else _WEAK_ETAG_S)
        except NotFound:  # a later epoch has begun
            return self.load(process_id)
        return _marked(document, self._mark(standing, document))

    def _try(self, process_id: str, edit: Edit) -> Document | None:
        """Apply an edit; None if another program was faster."""
        held = self._release(process_id)
        standing, newest, mark = self._look(process_id, held)
        document = _marked(newest, mark)
        record = edit.change(document.record)  # what raises or changes nothing needs no epoch
        is_writer = held is not None and standing.is_written_by(held[0])
        is_of_record_alone = edit.write is None and not edit.renews
        if is_of_record_alone and record == document.record:
            if held is not None and is_writer:
                self._hold(process_id, held[0], newest)
            return document
        if is_writer:
            return self._write(process_id, standing, newest, mark, edit)
        if (
            edit.write is None
            and not edit.renews
            and (request := CancelMark.between(document.record, record))
        ):
            return self._ask_to_cancel(process_id, request)
        epoch = self._win(
            process_id, standing.claimed + (standing.claimed == standing.epoch.number)
        )
        if epoch is None:
            return None
        try:
            standing, newest, mark = self._look(process_id)
            return self._write(process_id, standing, newest, mark, edit, epoch)
        except Exception:
            # Only as long as no document was put there: with one, the claim says who wrote it.
            if epoch not in self._standing(process_id).records:
                self._backend.discard(epoch.claim_key(process_id))
            raise

    def _win(self, process_id: str, number: int) -> Epoch | None:
        """Claim an epoch; None if another program has it."""
        epoch = Epoch(number, new_nonce())
        self._backend.put(epoch.claim_key(process_id), b"")
        time.sleep(self._settle_s)
        standing = self._standing(process_id)
        mine = standing.claims.get(epoch)
        is_open = standing.claimed == number and standing.epoch.number < number
        if mine is not None and is_open:
            rivals = standing.before(epoch)
            if not rivals:
                return epoch
            # By the store's clock, which may not be ours: did all who came first die?
            if all(mine.modified_s - rival.modified_s > self._stale_s for rival in rivals):
                self._backend.discard(epoch.claim_key(process_id))
                return self._win(process_id, number + 1)
        self._backend.discard(epoch.claim_key(process_id))
        return None

    def _write(
        self,
        process_id: str,
        standing: Standing,
        newest: Document,
        mark: CancelMark | None,
        edit: Edit,
        won: Epoch | None = None,
    ) -> Document | None:
        """Write the next version in the epoch that is ours; None if it turns out to be over."""
        epoch = won or standing.epoch
        ancestors = newest.with_ancestor(_ANCESTORS) if won else newest.ancestors
        while True:
            document = _marked(newest, mark)
            new = edit.of(document, ancestors)
            if new is None:
                new = document if won is None else document.model_copy(
                    update={"nonce": new_nonce(), "ancestors": ancestors}
                )  # fmt: skip
            self._backend.put(epoch.record_key(process_id), new.data)
            standing = self._standing(process_id)
            if not self._remains(process_id, standing, epoch, new):
                self._backend.discard(*new.parts.keys - newest.parts.keys)
                return None
            later = self._mark(standing, newest)
            if later is None or mark is not None or later.is_for(new.record):
                break
            # A cancel was asked for while we ended the attempt; it counts as asked before.
            self._backend.discard(*new.parts.keys - newest.parts.keys)
            mark = later
        self._hold(process_id, epoch, new)
        self._backend.discard(*newest.parts.keys - new.parts.keys, *standing.outdated(epoch))
        if later is not None and not later.is_for(new.record):
            self._backend.discard(keys.process_cancel(process_id))
        return _marked(new, later)

    def _remains(self, process_id: str, standing: Standing, epoch: Epoch, new: Document) -> bool:
        """Whether a version that was put is, or is part of, what counts."""
        give_up_s = time.monotonic() + self._stale_s
        while True:
            if standing.epoch != epoch:
                return self._look(process_id)[1].descends_from(new.nonce)
            if standing.claimed == epoch.number or time.monotonic() > give_up_s:
                return True
            # Whoever claims may have read the version before, or this one.
            time.sleep(self._settle_s / 4)
            standing = self._standing(process_id)

    def _ask_to_cancel(self, process_id: str, request: CancelMark) -> Document | None:
        """Leave a mark for the writer; None if the attempt is over instead."""
        self._backend.put(keys.process_cancel(process_id), request.model_dump_json().encode())
        for _ in range(_STALE_SETTLES):
            standing, newest, mark = self._look(process_id)
            if not request.is_for(newest.record):
                self._backend.discard(keys.process_cancel(process_id))
                return None
            if standing.claimed == standing.epoch.number:
                return _marked(newest, mark or request)
            time.sleep(self._settle_s)  # whoever claims may not have seen the mark
        return None

    def _look(
        self, process_id: str, held: tuple[Epoch, Document] | None = None
    ) -> tuple[Standing, Document, CancelMark | None]:
        """Return what there is. Only the writer of a document may take it as it holds it."""
        for _ in range(TRIES):
            standing = self._standing(process_id)
            epoch = standing.epoch
            if held is not None and held[0] == epoch:
                return standing, held[1], self._mark(standing, held[1])
            try:
                document = self._backend.read(Document, epoch.record_key(process_id))
            except NotFound as error:
                if epoch == FIRST:
                    raise no_such_process(process_id) from error
                continue  # a later epoch has begun
            return standing, document, self._mark(standing, document)
        raise RegistryUnavailable(
            f"the record of process {process_id} is listed, but isn't there",
            remedy="Check that nothing else writes to the object store's folder `processes`.",
        )

    def _standing(self, process_id: str) -> Standing:
        return Standing.of(tuple(self._backend.list(keys.process_epochs(process_id))))

    def _mark(self, standing: Standing, document: Document) -> CancelMark | None:
        """Return the mark if there is one for this document's attempt."""
        if standing.mark is None:
            return None
        try:
            mark = self._backend.read(CancelMark, standing.mark.key)
        except NotFound:
            return None
        return mark if mark.is_for(document.record) else None

    def _hold(self, process_id: str, epoch: Epoch, document: Document) -> None:
        with self._guard:
            self._held[process_id] = (epoch, document)

    def _release(self, process_id: str) -> tuple[Epoch, Document] | None:
        """Take what is held; after a write that fails halfway a new epoch must be won."""
        with self._guard:
            held: tuple[Epoch, Document] | None = self._held.pop(process_id, None)
        return held


def _marked(document: Document, mark: CancelMark | None) -> Document:
    if mark is None or not mark.is_for(document.record):
        return document
    return document.model_copy(update={"record": mark.on(document.record)})
