"""Which engine works on a process: its name, which requests and configs give, and its version."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

BUILT_IN_ENGINE = "diffusers"
"""The engine of whatever names none: records, jobs and configs of earlier releases."""

EngineName = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, to_lower=True, pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,31}$"
    ),
]


class EngineUse(BaseModel):
    """An engine as a record, a job or an adapter names it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: EngineName = BUILT_IN_ENGINE
    version: str = ""
