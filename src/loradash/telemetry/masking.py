"""Secrets stay out of logs and replies: values under telling names, and telling parts of texts."""

import math
import re
from collections.abc import Mapping

MASK = "***"
MAX_TEXT = 2_000

_SECRET_NAME = re.compile(
    r"^aws_|token$|secret|passw(or)?d|passphrase|api_?key|access_?key|private_?key"
    r"|authorization|credential|cookie|signature|^database_url$"
)
# `name=value`, `name: value`, `"name": "value"`, also with the quotes of a text within a text.
_NAMED = re.compile(
    r"(?P<name>token|secret|passw(?:or)?d|passphrase|pwd|api[_-]?key|access[_-]?key(?:[_-]id)?"
    r"|private[_-]?key|signature|credentials?|authorization|cookie)"
    r"(?P<sign>\\{0,3}[\"']?\s{0,3}[=:]\s{0,3}(?:(?:basic|bearer)[ ]{1,3})?)"
    r"(?P<quote>\\{0,3}[\"'])?"
    r"(?P<value>(?(quote)[^\"'\\\n]+|[^\s&\"'\\,;(){}\[\]<>]+))"
    r"(?P<rest>(?(quote)|(?=(?P<sentence>[ \t]+\w)?)))",
    re.IGNORECASE,
)
# What isn't the value of `password: ...` but says something of it, or comes before it.
_NO_VALUE = re.compile(
    r"(bearer|basic|aws4-hmac-sha256|missing|required|unknown|invalid|none|null|true|false|empty"
    r"|expected|optional|unset|set|\*+)[.:]?",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]?[a-z']+[.:!?]?")
# A line of its own, `password: correct horse battery`: a passphrase unless it speaks of one.
_PASSPHRASE = re.compile(
    r"^(?P<name>[ \t\-\"']{0,20}(?:[\w-]{1,40}[_.-])?(?:passw(?:or)?d|passphrase|pwd|secret)[\"']?)"
    r"(?P<sign>[ \t]?:[ \t]{1,3})(?P<first>[A-Za-z']{1,40})(?=[ \t]+\w)[^\n]+$",
    re.IGNORECASE | re.MULTILINE,
)
_SPEAKS_OF_IT = frozenset(
    {
        "a", "an", "as", "can", "can't", "cannot", "could", "do", "does", "doesn't", "expected",
        "field", "give", "has", "have", "holds", "in", "input", "is", "isn't", "it", "its", "key",
        "keys", "length", "longer", "may", "missing", "must", "needs", "no", "none", "not", "null",
        "of", "only", "optional", "required", "send", "set", "should", "shorter", "some", "string",
        "text", "that", "the", "this", "to", "too", "unknown", "unset", "value", "was", "were",
        "with",
    }
)  # fmt: skip
_SHORT_NUMBER = re.compile(r"[\d.]{1,6}")
# Passwords within URLs, headers, and secrets that are known by their form: keys of RunPod, Hugging
# Face, AWS, GitHub, GitLab, Slack, Google and others, signed tokens, private keys.
_FORMED = re.compile(
    r"(?P<user>://[^\s:/@]{0,200}:)[^\s/@]{1,200}(?=@)"
    r"|(?P<scheme>\b(?i:bearer) {1,3})[\w.~+/=-]{8,}"
    r"|(?P<basic>\b(?i:basic) {1,3})(?=[A-Za-z0-9+/_-]{1,400}[A-Z0-9=])[A-Za-z0-9+/_-]{7,}={0,2}"
    r"|\b(?:rp[as]_|hf_|api_org_)[A-Za-z0-9]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}|\bxox[a-z]-[\w-]{10,}"
    r"|\bAIza[\w-]{35}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|$)"
)
_MAX_DEPTH = 6


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is probably a secret; ``X-Api-Key`` is ``x_api_key``."""
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


def without_secrets(text: str, max_length: int = MAX_TEXT) -> str:
    """Return the text cut to a length, with what looks like a secret masked."""
    cut = text if len(text) <= max_length else f"{text[:max_length]}… ({len(text)} characters)"
    return masked(cut)


def masked(text: str) -> str:
    """Return the text with what looks like a secret masked, however long it is.

    A text that only speaks of passwords stays as it is.
    """
    lines = _PASSPHRASE.sub(_without_passphrase, _FORMED.sub(_without_form, text))
    return _NAMED.sub(_without_value, lines)


def cleaned(name: str, value: object, depth: int = 0) -> object:
    """Return a value as JSON can hold it, without secrets and of bounded length.

    Empty values stay, since it helps to see that a secret isn't set.
    """
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return MASK if value != "" else value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {str(key): cleaned(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [cleaned("", item, depth + 1) for item in value]
    return without_secrets(str(value))


def _without_form(match: re.Match[str]) -> str:
    return f"{match['user'] or match['scheme'] or match['basic'] or ''}{MASK}"


def _without_passphrase(match: re.Match[str]) -> str:
    if match["first"].lower() in _SPEAKS_OF_IT:
        return match[0]
    return f"{match['name']}{match['sign']}{MASK}"


def _without_value(match: re.Match[str]) -> str:
    name, sign, value = match["name"], match["sign"], match["value"]
    if not match["quote"] and ":" in sign:
        is_prose = match["sentence"] and _WORD.fullmatch(value)
        is_count = name.lower() == "token" and _SHORT_NUMBER.fullmatch(value)
        if is_prose or is_count or _NO_VALUE.fullmatch(value):
            return match[0]
    return f"{name}{sign}{match['quote'] or ''}{MASK}"
