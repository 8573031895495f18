"""Addresses of stored objects: how a bucket's keys are named to users, and read from them.

One set of rules for requests, configs, replies and lists. A key alone is always relative to the
store; an address (``s3://bucket/prefix/key``) says which store that is.
"""

from typing import NamedTuple

SCHEME = "s3://"
RESULTS = "results"
"""What keys of results begin with."""
DATASETS = "dataset"
"""What keys of datasets begin with."""


class Address(NamedTuple):
    """Where the store's keys lie for others: a bucket, and what every key in it begins with.

    Without a bucket (a folder, memory) a key is shown as it is.
    """

    bucket: str = ""
    prefix: str = ""

    def shown(self, key: str) -> str:
        """Return ``s3://<bucket>/<prefix>/<key>``, or the key alone without a bucket."""
        path = f"{self.prefix}/{key}" if self.prefix else key
        return f"{SCHEME}{self.bucket}/{path}" if self.bucket else key

    def key_of(self, reference: str) -> str:
        """Return the key that is meant by a key or by `shown`'s text; '' if neither is."""
        if not is_address(reference):
            is_key = reference.startswith((f"{RESULTS}/", f"{DATASETS}/"))
            return reference if is_key else ""
        start = f"{self.prefix}/" if self.prefix else ""
        _, _, path = reference[len(SCHEME) :].partition("/")
        is_ours = self.has(reference) and path.startswith(start)
        return path.removeprefix(start) if is_ours else ""

    def has(self, reference: str) -> bool:
        """Whether an address names this bucket."""
        return bool(self.bucket) and bucket_of(reference) == self.bucket


NO_ADDRESS = Address()
"""The address of a store that has none for others."""


def is_address(reference: str) -> bool:
    """Whether a text names an object by its bucket and key, and not by its key alone."""
    return reference[: len(SCHEME)].lower() == SCHEME


def bucket_of(reference: str) -> str:
    """Return the bucket that an address names; '' for any other text."""
    return reference[len(SCHEME) :].partition("/")[0] if is_address(reference) else ""


def may_be_stored(reference: str) -> bool:
    """Whether a text can mean a result by its key or an object by its address."""
    return is_address(reference) or reference[: len(RESULTS) + 1].lower() == f"{RESULTS}/"


def result_key_in(reference: str) -> str:
    """Return the key of a result that a key or an address of any store ends with; '' if none."""
    _, root, rest = reference.partition(f"{RESULTS}/")
    return root + rest
