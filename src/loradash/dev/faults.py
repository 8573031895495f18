"""Faults that are asked for: what the next calls of a kind meet instead of a plain answer."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from loradash.dev.queue import Refused

OPERATIONS = ("take", "done", "progress", "ping", "stop", "run", "status", "cancel")
BEFORE = ("status", "delay", "drop_before")
"""What a call meets when it arrives."""
AFTER = ("drop_after",)
"""What a call meets when it was done."""
WITH_JOB = ("swallow", "duplicate", "drop_after")
"""What a ``take`` meets when there is a job for it."""
_ACTIONS = ("status", "delay", "drop_before", "drop_after", "swallow", "duplicate")
_PROCESSED = ("done", "progress", "run")  # what is lost of these is the reply


@dataclass
class Fault:
    """A fault, and for how many more calls."""

    operation: str
    action: str
    count: int = 1
    status: int = 500
    seconds: float = 1.0
    worker: str = ""
    """Only calls of this worker; all if empty."""


class Faults:
    """Faults in the order in which they were asked for."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, wanted: Any) -> Fault:
        """Add what a client describes. Raises `Refused`."""
        if not isinstance(wanted, dict):
            raise Refused(400, "a fault is a JSON object")
        if unknown := wanted.keys() - Fault.__dataclass_fields__.keys():
            raise Refused(400, f"unknown keys: {', '.join(sorted(unknown))}")
        operation, action = wanted.get("operation"), wanted.get("action")
        if action == "drop":
            action = "drop_after" if operation in _PROCESSED else "drop_before"
        if operation not in OPERATIONS:
            raise Refused(400, f"operation must be one of {', '.join(OPERATIONS)}")
        if action not in _ACTIONS:
            raise Refused(400, f"action must be one of drop, {', '.join(_ACTIONS)}")
        if action in ("swallow", "duplicate") and operation != "take":
            raise Refused(400, f"{action} is for the operation take only")
        fault = Fault(**{**wanted, "action": action})
        _check(fault)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all that have not happened."""
        self._faults.clear()

    def next(self, operation: str, worker: str, actions: tuple[str, ...]) -> Fault | None:
        """Return the first fault that this call meets, and count it."""
        for fault in self._faults:
            if (
                fault.operation == operation
                and fault.action in actions
                and fault.worker in ("", worker)
            ):
                fault.count -= 1
                if not fault.count:
                    self._faults.remove(fault)
                return fault
        return None

    def documents(self) -> list[dict[str, Any]]:
        """Return those that have not happened yet."""
        return [asdict(fault) for fault in self._faults]


def _check(fault: Fault) -> None:
    if not _is_number(fault.count) or fault.count != int(fault.count) or fault.count < 1:
        raise Refused(400, "count must be a whole number of at least 1")
    if not isinstance(fault.status, int) or not 400 <= fault.status <= 599:
        raise Refused(400, "status must be an HTTP status from 400 to 599")
    if not _is_number(fault.seconds) or not 0 <= fault.seconds <= 600:
        raise Refused(400, "seconds must be a number from 0 to 600")
    if not isinstance(fault.worker, str):
        raise Refused(400, "worker must be the id of a worker")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
