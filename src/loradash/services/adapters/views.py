"""What is said of one trained adapter."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from loradash.services.results.views import ModelView


class AdapterView(BaseModel):
    """All that is known of one adapter: as lists show it, and what its file says.

    ``key_names`` says whose names the tensors have (kohya, diffusers, other), ``works_in`` which
    programs read such a file. ``used_by`` are ids of processes that wait or run and need it.
    """

    model_config = ConfigDict(frozen=True)

    model: ModelView
    family: str | None
    rank: int | float | None
    alpha: int | float | None
    key_names: str
    dtype: str | None
    layers: int
    works_in: tuple[str, ...]
    used_by: tuple[str, ...]
    file_metadata: Mapping[str, str]
    elapsed_ms: int


class AdapterName(BaseModel):
    """The name that an adapter is shown with."""

    model_config = ConfigDict(frozen=True)

    process_id: str
    name: str
