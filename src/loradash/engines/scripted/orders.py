"""What the scripted engine is told to do, in the name of its base model.

``scripted:step_s=0.5,crash_at=7`` takes half a second for a step and kills itself at the seventh.
For a generation an image counts as a step. Any other name of a base model has no orders.
"""

from dataclasses import dataclass, fields

_PREFIX = "scripted:"


@dataclass(frozen=True)
class Orders:
    """How a scripted run goes; 0 means never, and no time at all."""

    start_s: float = 0.0
    """Seconds until it begins, as if a model were loaded."""
    step_s: float = 0.0
    """Seconds that a step or an image takes."""
    warn_at: int = 0
    """Step at which it warns of something, once."""
    fail_at: int = 0
    """Step that fails, with the code ``scripted_failure``; the run can be resumed."""
    crash_at: int = 0
    """Step at which the process kills itself without a report."""
    stall_at: int = 0
    """Step from which nothing happens any more; of the signals only SIGTERM still ends it."""
    ignore_stop: int = 0
    """1: requests to stop are ignored, and it goes on until it is killed."""
    once: int = 0
    """1: fails, crashes and stalls only the first time, so that a resumed run gets further."""


def parse_orders(base_model: str) -> Orders:
    """Read the orders in the name of a base model. Raises `ValueError` with what is wrong."""
    if not base_model.startswith(_PREFIX):
        return Orders()
    kinds = {field.name: field.type for field in fields(Orders)}
    given: dict[str, float] = {}
    for part in filter(None, base_model.removeprefix(_PREFIX).split(",")):
        name, _, text = part.strip().partition("=")
        if name not in kinds:
            raise ValueError(f"{name!r} isn't an order; there are {', '.join(kinds)}")
        try:
            given[name] = float(text) if kinds[name] is float else int(text)
        except ValueError as error:
            raise ValueError(f"{name}={text}: not a number") from error
        if not 0 <= given[name] <= 1e6:
            raise ValueError(f"{name}={text}: not between 0 and 1000000")
    return Orders(**given)  # type: ignore[arg-type]
