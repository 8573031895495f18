"""What was found of a training, and which promises that breaks. No I/O."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Stored(NamedTuple):
    """A file: of the record's artifacts, or of the bucket."""

    key: str
    size_bytes: int
    sha256: str


class Attempt(NamedTuple):
    """One attempt as the record tells it."""

    number: int
    ending: str
    from_step: int
    to_step: int


@dataclass(frozen=True)
class Training:
    """A training as it can be seen from outside: in the queue, the registry and the bucket."""

    process_id: str
    job_status: str
    status: str
    total_steps: int
    weights: str
    """SHA-256 of the adapter's tensors."""
    metrics: tuple[tuple[int, float], ...]
    """Step and loss."""
    artifacts: tuple[Stored, ...]
    objects: tuple[Stored, ...]
    attempts: tuple[Attempt, ...]
    names: tuple[str, ...] = field(default=())
    """Kind and name of each artifact."""

    @property
    def lost_attempts(self) -> int:
        """Attempts whose worker was lost."""
        return sum(one.ending == "lost" for one in self.attempts)

    @property
    def steps_done_twice(self) -> int:
        """Steps that an attempt had done and another one had to do again."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return sum(max(0, first.to_step - second.from_step) for first, second in pairs)


UNLISTED = frozenset({"manifest.json"})
"""Objects that list the others."""


def broken_promises(one: Training, undisturbed: Training) -> list[str]:
    """Return what doesn't hold of a training, next to the same one that nobody disturbed."""
    found = []
    if (one.status, one.job_status) != ("completed", "COMPLETED"):
        found.append(f"process {one.status}, job {one.job_status}")
    if one.weights != undisturbed.weights:
        found.append(f"other weights: {one.weights[:12]}, not {undisturbed.weights[:12]}")
    if [step for step, _ in one.metrics] != list(range(1, one.total_steps + 1)):
        found.append(f"measurements of {len(one.metrics)} steps, not of 1 to {one.total_steps}")
    elif one.metrics != undisturbed.metrics:
        found.append("other losses")
    if sorted(one.names) != sorted(undisturbed.names):
        found.append(
            f"artifacts: {sorted(set(one.names) ^ set(undisturbed.names))} only in one, "
            f"{len(one.names)} and {len(undisturbed.names)}"
        )
    there = {stored.key: stored for stored in one.objects}
    listed = [stored.key for stored in one.artifacts]
    found += [
        f"artifact {stored.key} isn't in the bucket as it is listed"
        for stored in one.artifacts
        if there.get(stored.key) != stored
    ]
    found += [f"artifact {key} is listed twice" for key in set(listed) if listed.count(key) > 1]
    found += [
        f"object {key} belongs to nothing"
        for key in there
        if key not in listed and key.rpartition("/")[2] not in UNLISTED
    ]
    numbers = [attempt.number for attempt in one.attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"attempts {numbers}")
    if [attempt.ending for attempt in one.attempts if not attempt.ending]:
        found.append("an attempt without an end")
    return found
