"""What an executor says of itself: what runs where, and why what waits is waiting."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class _State(BaseModel):
    model_config = ConfigDict(frozen=True)


class LaneState(_State):
    """The part of a slot that runs processes of some kinds, one at a time."""

    name: str = Field(description="of `loradash.domain.kinds.LANES`")
    process_id: str | None = Field(None, description="of the process that runs; None: it's free")
    waiting_reason: str = Field("", description="why nothing runs here although something waits")


class SlotState(_State):
    """A device of this machine: a GPU, or the CPU."""

    name: str
    lanes: tuple[LaneState, ...] = ()


class EndpointState(_State):
    """A RunPod endpoint, as far as it was asked; None: it wasn't yet."""

    id: str
    jobs: Mapping[str, int] | None = Field(None, description="number of jobs by their state")
    workers: Mapping[str, int] | None = Field(None, description="number of workers by their state")
    waiting_reason: str = Field("", description="why no worker takes what waits")


class ExecutorState(_State):
    """Where processes run: slots of this machine, or an endpoint elsewhere; or nowhere from here.

    ``error`` is why nothing can be started at the moment; '' if nothing is wrong.
    """

    slots: tuple[SlotState, ...] = ()
    endpoint: EndpointState | None = None
    error: str = ""
