"""What is wrong with a base model, as many findings as there are, and as one error."""

from collections.abc import Sequence
from typing import NamedTuple

from loradash.errors import InvalidBaseModel

COMPLETE = "download the model again, completely"


class Finding(NamedTuple):
    """One thing that is wrong: a text that begins with the file or part, and what to do."""

    text: str
    remedy: str


class Findings(Exception):
    """Findings that end the look at one part of a base model."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(finding.text for finding in findings))
        self.findings = list(findings)


def invalid_base_model(name: str, findings: Sequence[Finding]) -> InvalidBaseModel:
    """Return the error that tells of all findings; several are listed, each with its remedy."""
    if len(findings) == 1:
        (only,) = findings
        return InvalidBaseModel(f"base model {name}: {only.text}", remedy=sentence(only.remedy))
    remedies = list(dict.fromkeys(finding.remedy for finding in findings))
    if len(remedies) == 1:
        problems = [finding.text for finding in findings]
        remedy = sentence(remedies[0])
    else:
        problems = [f"{finding.text}; {finding.remedy}" for finding in findings]
        remedy = "Correct each of them, or use another copy of the model."
    return InvalidBaseModel(
        f"base model {name}: {len(findings)} things are wrong with it",
        problems=problems,
        remedy=remedy,
    )


def sentence(text: str) -> str:
    """Return a remedy as a sentence of its own."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
