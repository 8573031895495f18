"""What the hub's library raises, as one sentence with the cause and one with the remedy.

The library packs its errors into others; what counts is the innermost one that it made of an
answer, or of the lack of one (huggingface_hub, ``errors.py``).
"""

import ssl
from collections.abc import Iterator
from typing import Any

from loradash.engines.diffusers.base_models.findings import Finding

_LATER = "try again later"
_OR_FOLDER = "or give a local folder"


def told(error: BaseException, name: str) -> Finding:
    """Return the finding that an error of the hub's library is about the repository ``name``."""
    from huggingface_hub import constants, errors

    chain = list(_chain(error))
    page = f"{constants.ENDPOINT}/{name}"
    kinds: tuple[tuple[type[BaseException], Finding], ...] = (
        (errors.GatedRepoError, _gated(name, page)),
        (
            errors.DisabledRepoError,
            Finding(f"the hub has disabled {name}", f"use another model, {_OR_FOLDER}"),
        ),
        (
            errors.RevisionNotFoundError,
            Finding(
                f"the hub has {name}, but not the revision that is wanted",
                "see on its page which branches it has",
            ),
        ),
        (
            errors.RepositoryNotFoundError,
            Finding(
                f"there is no model {name} on the hub, or it is private",
                "check the id; for a private model set HF_TOKEN to a token that may read it",
            ),
        ),
        (
            errors.RemoteEntryNotFoundError,
            Finding(f"a file of {name} is gone from the hub", _LATER),
        ),
        (
            errors.OfflineModeIsEnabled,
            Finding("downloads are off (HF_HUB_OFFLINE)", f"allow them once, {_OR_FOLDER}"),
        ),
        (
            errors.HFValidationError,
            Finding(f"{name} isn't an id of the hub", "an id is of the form owner/model"),
        ),
    )
    for kind, finding in kinds:
        if any(isinstance(one, kind) for one in chain):
            return finding
    for one in chain:
        response = getattr(one, "response", None)
        if response is not None and getattr(response, "status_code", 200) >= 400:
            return _by_status(response, name)
    return _unreachable(chain, constants.ENDPOINT)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from, the innermost last."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _gated(name: str, page: str) -> Finding:
    from huggingface_hub import get_token

    if get_token():  # of a variable, or of `hf auth login`
        return Finding(
            f"the hub gives {name} only to people who were let in (gated), and the account of "
            "HF_TOKEN wasn't",
            f"accept its licence at {page} with that account, and wait for approval where needed",
        )
    return Finding(
        f"the hub gives {name} only to people who accepted its licence (gated)",
        f"accept it at {page} and set HF_TOKEN to a token of your account",
    )


def _by_status(response: Any, name: str) -> Finding:
    status = int(response.status_code)
    if status == 401:
        return Finding(
            f"the hub refuses HF_TOKEN (401) when asked for {name}",
            "set HF_TOKEN to a valid token, or leave it out for public models",
        )
    if status == 403:
        return Finding(
            f"the hub doesn't let this account read {name} (403)",
            "set HF_TOKEN to a token with the right to read this repository",
        )
    if status == 404:
        return Finding(f"a file of {name} isn't on the hub (404)", "check the id")
    if status == 429:
        from huggingface_hub import get_token

        wait = str(response.headers.get("Retry-After", ""))
        return Finding(
            "the hub limits the rate of requests (429), and too many came from this address",
            (f"try again in {wait} seconds" if wait.isdecimal() else _LATER)
            + ("" if get_token() else "; with HF_TOKEN the limit is higher"),
        )
    if status >= 500:
        return Finding(f"the hub has an error of its own ({status})", f"{_LATER}, {_OR_FOLDER}")
    return Finding(f"the hub answered {status} when asked for {name}", "check the id")


def _unreachable(chain: list[BaseException], endpoint: str) -> Finding:
    """No answer, or one that isn't a hub's."""
    import httpx2

    innermost = chain[-1]
    network = f"check the network and the proxy settings, {_OR_FOLDER}"
    for one in chain:
        if isinstance(one, httpx2.TimeoutException | TimeoutError):
            return Finding(f"the hub at {endpoint} didn't answer in time", network)
        if isinstance(one, ssl.SSLError):
            return Finding(
                f"no secure connection to the hub at {endpoint}: {_text(one)}",
                "check the system's certificates and clock; SSL_CERT_FILE names others",
            )
        if isinstance(one, httpx2.ProxyError):
            return Finding(
                f"the proxy doesn't let requests to the hub at {endpoint} through: {_text(one)}",
                "check HTTPS_PROXY and NO_PROXY",
            )
    for one in chain:
        if isinstance(one, httpx2.HTTPError | ConnectionError):
            return Finding(f"the hub at {endpoint} can't be reached: {_text(innermost)}", network)
    if isinstance(innermost, OSError) and innermost.errno:
        return Finding(f"the hub's cache: {innermost}", "check the disk, and where HF_HOME is")
    return Finding(
        f"what answers at {endpoint} isn't a model hub ({_text(innermost)})",
        "correct HF_ENDPOINT, or check whether a proxy answers in its place",
    )


def _text(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
