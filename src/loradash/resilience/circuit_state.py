"""What is known of the other side of a circuit; apart, since it is told without asking anything."""

from typing import Literal, NamedTuple

State = Literal["closed", "open", "half_open"]


class CircuitState(NamedTuple):
    """What health tells of a circuit."""

    state: State
    failures: int
    """In a row, up to now."""
    retries: int
    """Of all calls so far."""
    next_try_s: float
    last_error: str
