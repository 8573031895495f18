"""Objects by the names under which results are known, whichever attempt wrote them."""

from loradash.errors import NotFound
from loradash.storage import keys


def names(store, prefix=""):
    """The published names of what lies below a published prefix."""
    found = {keys.published(info.key) for info in store.list(prefix)}
    return sorted(found)


def real_key(store, name):
    """The key of the latest object with this published name."""
    prefix = "/".join(name.split("/")[:2])
    found = [info for info in store.list(prefix) if keys.published(info.key) == name]
    if not found:
        raise NotFound(f"nothing is known as {name!r}")
    return max(found, key=_latest).key


def content(store, name):
    """What the latest object with this published name holds."""
    return store.get(real_key(store, name))


def _latest(info):
    mark = keys.mark_of(info.key)
    return mark.attempt, mark.is_edit, info.modified_s
