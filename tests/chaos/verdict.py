"""What was found of a training, and which promises that breaks. No I/O."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from loradash.storage.keys import published


class Stored(NamedTuple):
    """A file: as it is listed, or as it lies in the bucket (``kind`` is '' there)."""

    key: str
    size_bytes: int
    sha256: str
    kind: str = ""

    @property
    def content(self) -> tuple[int, str]:
        """What must be equal."""
        return self.size_bytes, self.sha256


class Attempt(NamedTuple):
    """One attempt as the record tells it; times are Unix times."""

    number: int
    ending: str
    from_step: int
    to_step: int
    owner: str = ""
    started_s: float = 0.0
    ended_s: float | None = 0.0


@dataclass(frozen=True)
class Training:
    """A training as it can be seen from outside: in the queue, the registry and the bucket."""

    process_id: str
    job_status: str
    status: str
    total_steps: int
    weights: str
    """SHA-256 of the adapter's tensors."""
    metrics: tuple[tuple[int, float], ...] = ()
    """Step and loss."""
    artifacts: tuple[Stored, ...] = ()
    """What the record lists."""
    manifest: tuple[Stored, ...] = ()
    """What the list in the bucket names."""
    objects: tuple[Stored, ...] = ()
    """What lies in the bucket."""
    attempts: tuple[Attempt, ...] = ()
    """The latest ones."""
    attempt_count: int = 0
    log_gaps: int = 0
    """Numbers of log lines that are missing or too many."""

    @property
    def lost_attempts(self) -> int:
        """Attempts whose worker was lost."""
        return sum(one.ending == "lost" for one in self.attempts)

    @property
    def steps_done_twice(self) -> int:
        """Steps that the record knew as done and another attempt had to do again."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return sum(max(0, first.to_step - second.from_step) for first, second in pairs)

    @property
    def names(self) -> Counter[str]:
        """Kinds and names of the results, except checkpoints.

        How many of those are there depends on how often a new machine began: it fetches two.
        """
        prefix = f"results/{self.process_id}/"
        kept = [one for one in self.artifacts if one.kind != "checkpoint"]
        return Counter(f"{one.kind} {published(one.key).removeprefix(prefix)}" for one in kept)

    @property
    def samples(self) -> dict[str, str]:
        """Preview images and what is in them."""
        prefix = f"results/{self.process_id}/"
        return {published(one.key).removeprefix(prefix): one.sha256
                for one in self.artifacts if one.kind == "sample"}  # fmt: skip


_UNLISTED = "manifest.json"
"""The object that lists the others."""


def broken_promises(one: Training, undisturbed: Training) -> list[str]:
    """Return what doesn't hold of a training, next to the same one that nobody disturbed."""
    if (one.status, one.job_status) != ("completed", "COMPLETED"):
        return [f"process {one.status}, job {one.job_status}"]
    return [
        *_results(one, undisturbed), *_measurements(one, undisturbed), *_files(one), *_story(one)
    ]  # fmt: skip


def _results(one: Training, undisturbed: Training) -> list[str]:
    found = []
    if one.weights == "none":
        found.append("no weights")
    elif one.weights != undisturbed.weights:
        found.append(f"other weights: {one.weights[:12]}, not {undisturbed.weights[:12]}")
    if one.names != undisturbed.names:
        missing, more = undisturbed.names - one.names, one.names - undisturbed.names
        found.append(f"results missing: {sorted(missing)}, too many: {sorted(more)}")
    elif one.samples != undisturbed.samples:
        found.append("other samples")
    return found


def _measurements(one: Training, undisturbed: Training) -> list[str]:
    steps = [step for step, _ in one.metrics]
    wanted = list(range(1, one.total_steps + 1))
    if steps != wanted:
        missing = sorted(set(wanted) - set(steps))
        more = sorted((Counter(steps) - Counter(wanted)).elements())
        return [f"measurements: steps missing {missing}, too many {more}"]
    if one.metrics != undisturbed.metrics:
        pairs = zip(one.metrics, undisturbed.metrics, strict=False)
        first = next((ours[0] for ours, theirs in pairs if ours != theirs), "of another length")
        return [f"other losses, from step {first} on"]
    return []


def _files(one: Training) -> list[str]:
    there = {stored.key: stored.content for stored in one.objects}
    listed = Counter(stored.key for stored in one.artifacts)
    found = [f"{key} is listed {count} times" for key, count in listed.items() if count > 1]
    for stored in one.artifacts:
        if stored.key not in there:
            found.append(f"{stored.key} is listed and missing")
        elif there[stored.key] != stored.content:
            found.append(f"{stored.key} isn't in the bucket as it is listed")
    found += [
        f"{key} belongs to nothing"
        for key in sorted(there)
        if key not in listed and key.rpartition("/")[2] != _UNLISTED
    ]
    if sorted(one.manifest) != sorted(one.artifacts):
        names = sorted({stored.key for stored in set(one.manifest) ^ set(one.artifacts)})
        found.append(f"manifest and record differ: {names}")
    folders = Counter(published(stored.key).rpartition("/")[0] for stored in one.artifacts
                      if stored.kind == "checkpoint")  # fmt: skip
    if len(set(folders.values())) > 1:
        found.append(f"checkpoints of different size: {dict(folders)}")
    return found


def _story(one: Training) -> list[str]:
    found = []
    numbers = [attempt.number for attempt in one.attempts]
    if numbers != list(range(one.attempt_count - len(numbers) + 1, one.attempt_count + 1)):
        found.append(f"attempts {numbers} of {one.attempt_count}")
    endings = [attempt.ending for attempt in one.attempts]
    if endings[-1:] != ["completed"] or not set(endings[:-1]) <= {"lost", "released"}:
        found.append(f"attempts ended {endings}")
    found += [
        f"attempt {attempt.number} has no end after its beginning"
        for attempt in one.attempts
        if attempt.ended_s is None or attempt.ended_s < attempt.started_s
    ]
    for first, second in zip(one.attempts, one.attempts[1:], strict=False):
        if first.ended_s is not None and second.started_s < first.ended_s:
            found.append(f"attempts {first.number} and {second.number} overlap")
    if one.log_gaps:
        found.append(f"{one.log_gaps} gaps in its log")
    return found
