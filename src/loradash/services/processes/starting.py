"""Starting processes: what was asked for is checked, submitted, and the executor notified."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from loradash.domain.kinds import Kind
from loradash.domain.native_sizes import users_text
from loradash.domain.process import ProcessRecord, Status
from loradash.domain.training_text import parse_training
from loradash.executors.executor import Executor
from loradash.services.generation.service import GenerationService
from loradash.services.path_policy import PathPolicy
from loradash.services.training.service import CheckedTraining, TrainingService


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Submission(_Frozen):
    """What is said of a new process beside its config."""

    request_id: str = ""
    priority: int = 0
    idempotency_key: str = Field(
        "", description="what is submitted again with it is the same process; '': always a new one"
    )


class StartedProcess(_Frozen):
    """A process that was submitted, now or by an earlier request with its idempotency key."""

    id: str
    kind: Kind
    name: str
    status: Status
    warnings: tuple[str, ...] = Field(description="what was found by the check of this request")


class ProcessStarter:
    """Starts trainings and generations for those who may use only what a path policy allows.

    Every method raises what the check of its kind raises, before anything is written. What is found
    only when the process runs becomes the error of its record.
    """

    def __init__(
        self,
        training: TrainingService,
        generation: GenerationService,
        executor: Executor,
        path_policy: PathPolicy,
    ) -> None:
        self._training = training
        self._generation = generation
        self._executor = executor
        self._path_policy = path_policy

    def train(
        self, document: Mapping[str, Any], text: str, submission: Submission
    ) -> StartedProcess:
        """Start a training with a config; ``text`` is the same as YAML, and is what is stored."""
        config = parse_training(dict(document))
        checked = self._training.quick_check(config, self._path_policy)
        return self._submit_training(checked, users_text(text, checked.config), submission)

    def extend(
        self, process_id: str, steps: int, name: str, submission: Submission
    ) -> StartedProcess:
        """Start a training that goes on from a completed one, to ``steps`` steps in all."""
        checked = self._training.check_extension(process_id, steps, name, self._path_policy)
        return self._submit_training(checked, "", submission)

    def generate(self, settings: Mapping[str, Any], submission: Submission) -> StartedProcess:
        """Start a generation with settings as `GenerationRequest` has them, not checked yet.

        Without ``base_model`` it is the one that the first adapter was trained for.
        """
        request = self._generation.request(settings, self._path_policy)
        checked = self._generation.check(request, self._path_policy)
        record = self._generation.submit(
            checked, request_id=submission.request_id, priority=submission.priority,
            key=submission.idempotency_key,
        )  # fmt: skip
        return self._started(record, checked.warnings)

    def _submit_training(
        self, checked: CheckedTraining, text: str, submission: Submission
    ) -> StartedProcess:
        record = self._training.submit(
            checked, text,
            request_id=submission.request_id, priority=submission.priority,
            key=submission.idempotency_key,
        )  # fmt: skip
        return self._started(record, checked.warnings)

    def _started(self, record: ProcessRecord, warnings: tuple[str, ...]) -> StartedProcess:
        self._executor.submitted(record.id)
        return StartedProcess(
            id=record.id, kind=record.kind, name=record.name, status=record.status,
            warnings=warnings,
        )  # fmt: skip
