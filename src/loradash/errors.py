"""One tree of errors. Each class has a stable ``code`` and each instance says what the user can do.

The codes are part of the interface: they stand in events, in records and in replies, and clients
may branch on them. A message names the thing that is wrong; the remedy names the next action.
"""

from collections.abc import Sequence
from typing import ClassVar

from loradash.visible_text import visible

MAX_PROBLEMS = 100
MAX_PROBLEM = 500
MAX_MESSAGE = 2000
"""Characters. Errors quote what they are about, and that may have been sent by anybody; they stand
in records, logs and replies. So what they quote is cut, and control characters are escaped."""

_BULLET = "  - "


class LoradashError(Exception):
    """Base of all errors that loradash raises on purpose.

    ``problems`` lists every single finding where there are several (each key of a bad config, each
    bad image), so that a user repairs them in one go and not one run at a time.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, remedy: str = "", problems: Sequence[str] = ()) -> None:
        self.message = _cut(visible(message), MAX_MESSAGE)
        super().__init__(self.message)
        self.remedy = _cut(visible(remedy), MAX_MESSAGE)
        self.problems = tuple(
            _cut(visible(problem), MAX_PROBLEM) for problem in problems[:MAX_PROBLEMS]
        )
        if len(problems) > MAX_PROBLEMS:
            self.problems += (f"and {len(problems) - MAX_PROBLEMS} more",)

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, each problem, and the remedy if there is one, as people read them."""
        return (
            self.message,
            *(f"{_BULLET}{problem}" for problem in self.problems),
            *((self.remedy,) if self.remedy else ()),
        )

    def __str__(self) -> str:
        return "\n".join(self.lines)


class InvalidConfig(LoradashError):
    """A training or generation config that can't be used as it stands."""

    code = "config_invalid"


class InvalidSettings(LoradashError):
    """An environment variable or option of loradash itself is wrong or missing."""

    code = "settings_invalid"


class InvalidDataset(LoradashError):
    """A dataset folder is missing, empty, changed, or holds files that can't be used."""

    code = "dataset_invalid"


class InvalidBaseModel(LoradashError):
    """The base model is missing, of an unsupported family, or can't be loaded."""

    code = "base_model_invalid"


class InvalidAdapter(LoradashError):
    """A LoRA file is missing, damaged, or doesn't fit the base model."""

    code = "adapter_invalid"


class InvalidCheckpoint(LoradashError):
    """No checkpoint verifies, or the one asked for belongs to another training."""

    code = "checkpoint_invalid"


class NotFound(LoradashError):
    """Something that was named doesn't exist."""

    code = "not_found"


class AlreadyRunning(LoradashError):
    """Another program is working on the same process."""

    code = "already_running"


class ConflictingState(LoradashError):
    """A process isn't in the state that the request needs."""

    code = "conflicting_state"


class LeaseLost(LoradashError):
    """A worker wants to write to a process that it doesn't own any more."""

    code = "lease_lost"


class WorkerLost(LoradashError):
    """The worker of a process vanished again and again."""

    code = "worker_lost"


class InvalidRequest(LoradashError):
    """A request that can't be read or isn't allowed; each problem names its field."""

    code = "request_invalid"


class RegistryUnavailable(LoradashError):
    """The registry of processes can't be read or written."""

    code = "registry_unavailable"


class ServerUnreachable(LoradashError):
    """The server that a command should talk to doesn't answer."""

    code = "server_unreachable"


class ExecutorUnavailable(LoradashError):
    """RunPod can't be reached, or doesn't answer as it should; it may pass by itself."""

    code = "executor_unavailable"


class ExecutorRefused(LoradashError):
    """RunPod answers and refuses: the key, the endpoint, or what was asked for."""

    code = "executor_refused"


class ServerBusy(LoradashError):
    """The server has no room for a request now; it will have."""

    code = "server_busy"


class OutOfMemory(LoradashError):
    """The GPU's or the machine's memory ran out."""

    code = "out_of_memory"


class LossNotFinite(LoradashError):
    """The loss or the gradients became NaN or infinite."""

    code = "loss_not_finite"


class ImageNotFinite(LoradashError):
    """An image became NaN or infinite while it was drawn."""

    code = "image_not_finite"


class DiskFull(LoradashError):
    """The disk ran full; nothing that was complete before is harmed."""

    code = "disk_full"


class EngineUnavailable(LoradashError):
    """An engine's packages are not installed, or can't start on this machine."""

    code = "engine_unavailable"


class EngineCrashed(LoradashError):
    """The engine's process ended without saying how."""

    code = "engine_crashed"


class EngineStalled(LoradashError):
    """The engine gave no sign of life for too long and was ended."""

    code = "engine_stalled"


class TimedOut(LoradashError):
    """A training or generation ran past its time limit and was ended."""

    code = "timed_out"


class ResultsNotStored(LoradashError):
    """A training ended well, but its results could not be stored."""

    code = "results_not_stored"


class Interrupted(LoradashError):
    """The work was stopped on request; a checkpoint says where it goes on."""

    code = "interrupted"


class InvalidKey(LoradashError):
    """A key that no object store may be asked for."""

    code = "key_invalid"


class StoreUnavailable(LoradashError):
    """The object store doesn't answer, or not as it should; trying later may help."""

    code = "store_unavailable"


class StoreRefused(LoradashError):
    """The object store answers and refuses: credentials, rights, or something it can't do."""

    code = "store_refused"


class TransferFailed(LoradashError):
    """Some files of a batch didn't arrive; each problem names one."""

    code = "transfer_failed"


class PreconditionFailed(LoradashError):
    """A conditional write found another version of the object than the one expected."""

    code = "precondition_failed"


def by_code(code: str) -> type[LoradashError]:
    """Return the error class with this code, or `LoradashError` for an unknown one."""
    for kind in LoradashError.__subclasses__():
        if kind.code == code:
            return kind
    return LoradashError


def error_told(text: str) -> LoradashError:
    """Return the error that a reply's text tells of, which is ``str(error)`` of the other side."""
    message, *lines = text.split("\n")
    problems = [line[len(_BULLET) :] for line in lines if line.startswith(_BULLET)]
    others = [line for line in lines if not line.startswith(_BULLET) and line.strip()]
    return LoradashError(message, remedy=" ".join(others[:1]), problems=[*problems, *others[1:]])


def _cut(text: str, limit: int) -> str:
    """Return the text, its middle left out if it is too long: both ends tell the most."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
