"""What clients may ask for: one type of request for each ``type``, checked before anything runs.

The names and rules are those of the published dashboard's protocol. Fields that a client sends
beyond them don't fail, since older clients send more, but are named in the reply's warnings; a
value that is null counts as not given.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from loradash.domain import yaml_text
from loradash.domain.artifacts import ResultType
from loradash.domain.dataset_uploads import AnnouncedDataset, FilesUpload
from loradash.domain.ids import key_of_client, key_of_job, process_id_of
from loradash.domain.kinds import GENERATION, Kind, KindOfWork, kind_started_by
from loradash.domain.log_types import ClearedLogs
from loradash.domain.process import Status
from loradash.domain.schema import nearest, path_text
from loradash.domain.training_config import MAX_TEXT_CHARACTERS
from loradash.domain.upload_fields import (
    MAX_SHOWN,
    Count,
    DatasetFolder,
    Text,
    UploadId,
    list_of,
    shown,
)
from loradash.errors import InvalidRequest
from loradash.protocol.request_fields import (
    MAX_REFERENCE_CHARACTERS,
    Config,
    Id,
    JsonNumber,
    JsonValue,
    Priority,
    Reference,
)

MAX_PROBLEMS = 20
MAX_PROCESSES = 200
MAX_IDS = 50
MAX_REFERENCES = 200  # as many as one page of a list has


IdempotencyKey = Annotated[
    Text,
    Field(
        min_length=1, max_length=200,
        description="what is sent again with the same key is the same process",
    ),
]  # fmt: skip


class _Request(BaseModel):
    # Inputs can be large and secret, so errors don't carry them.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)

    _unknown: tuple[str, ...] = PrivateAttr(default=())

    @property
    def is_overview(self) -> bool:
        """Whether nothing but its type was given, so that a list shows what matters most."""
        return not self.model_fields_set - {"type"}

    @classmethod
    def known_fields(cls) -> list[str]:
        """All names that a client may send, second names too."""
        names = set(cls.model_fields)
        for field in cls.model_fields.values():
            if isinstance(field.validation_alias, AliasChoices):
                names |= {str(choice) for choice in field.validation_alias.choices}
        return sorted(names)


class HealthRequest(_Request):
    """Is everything that a worker needs there?"""

    type: Literal["health"]


class Extend(BaseModel):
    """A completed training that shall have more steps, in a training of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    process_id: Annotated[
        Text,
        Field(
            min_length=1, max_length=MAX_REFERENCE_CHARACTERS,
            description="its id, or the name that only its adapter has",
        ),
    ]  # fmt: skip
    steps: int = Field(ge=1, le=10_000_000, description="in all, counted as in its config")
    name: Annotated[
        Text, Field(max_length=100, description="of the new adapter; default: with the steps")
    ] = ""


class TrainRequest(_Request):
    """Start a training. Both types and both fields mean the same; exactly one config is given.

    In place of a config, ``extend`` names a completed training to go on from.
    """

    type: Literal["train", "train_with_yaml"]
    config: Config | None = None
    yaml_config: Config | None = None
    extend: Extend | None = None
    priority: Priority = 0
    idempotency_key: IdempotencyKey | None = None

    @model_validator(mode="after")
    def _one_config(self) -> Self:
        given = [name for name in ("config", "yaml_config") if not _blank(getattr(self, name))]
        if self.extend and given:
            raise ValueError(f"extend, {given[0]}: both are given; send one of them")
        if not given and not self.extend:
            raise ValueError("config: missing or empty; send the training's config as YAML text")
        if len(given) == 2:
            raise ValueError("config, yaml_config: both are given; send one of them")
        return self

    @property
    def _given(self) -> str | dict[str, Any]:
        chosen = self.yaml_config if _blank(self.config) else self.config
        assert chosen is not None
        return chosen

    @property
    def text(self) -> str:
        """The config as YAML: as it was sent, if it was sent as text."""
        given = self._given
        return given if isinstance(given, str) else yaml_text.dump_mapping(given)

    @property
    def document(self) -> dict[str, Any]:
        """The config as a parsed document. Raises `InvalidConfig` for a text that isn't one."""
        return _parsed(self._given, "training config")


class GenerateRequest(_Request):
    """Draw images: from a config, from a prompt with direct fields, or from both together."""

    type: Literal["generate"]
    config: Config | None = None
    prompt: Annotated[Text, Field(max_length=MAX_TEXT_CHARACTERS)] | None = Field(
        None, description="an empty one is drawn, too, but beside a config it counts as not given"
    )
    model_path: JsonValue = Field(None, description="sent by older clients; has no effect")
    priority: Priority = 0
    idempotency_key: IdempotencyKey | None = None
    base_model: JsonValue = None
    engine: JsonValue = Field(None, description="what draws it; default: LORADASH_ENGINE")
    adapters: JsonValue = Field(None, description="a list of {path, weight} or REFERENCE:WEIGHT")
    lora: Annotated[Text, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="one adapter, with :WEIGHT if it isn't 1"
    )
    negative_prompt: JsonValue = None
    num_images: JsonNumber = None
    seed: JsonNumber = None
    steps: JsonNumber = None
    guidance_scale: JsonNumber = None
    width: JsonNumber = None
    height: JsonNumber = None
    scheduler: JsonValue = None

    @model_validator(mode="after")
    def _something_to_draw(self) -> Self:
        if _blank(self.config) and self.prompt is None:
            raise ValueError("prompt: missing, and there is no config either; send one of them")
        if self.lora is not None and self.adapters is not None:
            raise ValueError("lora, adapters: both are given; send one of them")
        return self

    @property
    def text(self) -> str:
        """The config as YAML; '' if there is none."""
        if self.config is None or _blank(self.config):
            return ""
        return self.config if isinstance(self.config, str) else yaml_text.dump_mapping(self.config)

    @property
    def document(self) -> dict[str, Any] | None:
        """The config as a parsed document, or None. Raises `InvalidConfig`."""
        if self.config is None or _blank(self.config):
            return None
        return _parsed(self.config, "generation config")

    def fields(self) -> dict[str, Any]:
        """What was given beside the config, under the names of `GenerationRequest`, unchecked."""
        direct = {name: getattr(self, name) for name in _DIRECT_FIELDS}
        given = {name: value for name, value in direct.items() if value is not None}
        if self.lora is not None:
            given["adapters"] = [self.lora]
        if self.prompt is not None and (self.prompt.strip() or not self.text):
            given["prompts"] = [self.prompt]
        return given


_DIRECT_FIELDS = (
    "base_model", "engine", "adapters", "negative_prompt", "num_images", "seed", "steps",
    "guidance_scale", "width", "height", "scheduler",
)  # fmt: skip

Cursor = Annotated[Text, Field(max_length=1000)]


def _status(value: Any) -> Status:
    """Only texts reach the enum, whose own error would show all of a nested value."""
    if not isinstance(value, str) or value not in _STATUSES:
        raise ValueError(f"must be one of {', '.join(map(repr, _STATUSES))}")
    return Status(value)


_STATUSES = [str(status) for status in Status]


class ProcessesRequest(_Request):
    """List processes, the newest first, by pages.

    Without any of the fields: up to 200, of which the active ones come first.
    """

    type: Literal["processes"]
    limit: int = Field(MAX_PROCESSES, ge=1, le=MAX_PROCESSES)
    cursor: Cursor = ""
    kind: Kind | None = Field(None, validation_alias=AliasChoices("kind", "process_type"))
    status: Annotated[
        tuple[Annotated[Status, BeforeValidator(_status)], ...], list_of(0, len(Status), one=True)
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and "kind" in data and "process_type" in data:
            if data["kind"] != data["process_type"]:
                raise ValueError("kind, process_type: the same setting, but they differ; send one")
            return {name: value for name, value in data.items() if name != "process_type"}
        return data


class ProcessStatusRequest(_Request):
    """One process with, if asked for, the log lines and metrics after a point."""

    type: Literal["process_status"]
    process_id: Id
    log_after: Count | None = None
    log_limit: int = Field(500, ge=1, le=2000)
    metrics_after: Count | None = None
    metrics_limit: int = Field(1000, ge=1, le=5000)


class CancelRequest(_Request):
    """End a process that waits or runs."""

    type: Literal["cancel"]
    process_id: Id


class DownloadRequest(_Request):
    """A result of a process: its main one, or the one with this key.

    A file's key, or its address, may stand in place of the id, as `list_files` gives it of images.
    """

    type: Literal["download"]
    process_id: Reference
    s3_key: Annotated[Text, Field(min_length=1, max_length=2000)] | None = None


class DownloadByKeyRequest(_Request):
    """A result by its key."""

    type: Literal["download_by_key"]
    s3_key: Text = Field(min_length=1, max_length=2000)


class DownloadFileRequest(_Request):
    """A file by the path that a list of files showed."""

    type: Literal["download_file"]
    file_path: Text = Field(min_length=1, max_length=2000)


class _Listing(_Request):
    limit: int = Field(200, ge=1, le=1000)
    cursor: Cursor = ""


class ListModelsRequest(_Listing):
    """List trained adapters, by pages."""

    type: Literal["lora", "list_models"]


class ListFilesRequest(_Listing):
    """List result files below a path, by pages."""

    type: Literal["list_files"]
    path: Text = Field("", max_length=1000)


Ids = Annotated[tuple[Id, ...], list_of(1, MAX_IDS, distinct=True)]


class BulkDownloadRequest(_Request):
    """Links to the results of several processes, or to files that are named by their keys."""

    type: Literal["bulk_download"]
    process_ids: Annotated[tuple[Reference, ...], list_of(1, MAX_REFERENCES, distinct=True)]
    include_images: bool = True
    include_loras: bool = True


class DeleteResultsRequest(_Request):
    """Delete results, all or of one type, of the processes that are named."""

    type: Literal["delete_results"]
    process_id: Id | None = None
    process_ids: Ids | None = None
    result_type: ResultType = "all"

    @model_validator(mode="after")
    def _one_of_the_ids(self) -> Self:
        if self.process_id is None and self.process_ids is None:
            raise ValueError(
                "process_id: missing; say whose results to delete (process_id or process_ids). "
                "Without an id this request once deleted everybody's"
            )
        if self.process_id is not None and self.process_ids is not None:
            raise ValueError("process_id, process_ids: both are given; send one of them")
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """The processes, whichever field named them."""
        return self.process_ids or (self.process_id or "",)


class UploadRequest(FilesUpload, _Request):
    """Store a dataset, whose files come with the request."""

    type: Literal["upload_training_data"]


class CreateUploadRequest(AnnouncedDataset, _Request):
    """Announce a dataset's files, which are then sent one by one; continues what was interrupted.

    An upload with the same files and settings that is still open is continued.
    """

    type: Literal["create_upload"]


class _OfUpload(_Request):
    dataset_folder: DatasetFolder
    upload_id: UploadId


class CompleteUploadRequest(_OfUpload):
    """Check what has arrived of an upload, and make it the dataset; all or nothing."""

    type: Literal["complete_upload"]


class AbortUploadRequest(_OfUpload):
    """Give an upload up and delete what has arrived of it."""

    type: Literal["abort_upload"]


class ClearLogsRequest(_Request):
    """Empty one of the service's logs, or all."""

    type: Literal["clear_logs"]
    log_type: ClearedLogs


class ListDatasetFoldersRequest(_Request):
    """List the stored datasets."""

    type: Literal["list_dataset_folders"]


AnyRequest = (
    HealthRequest
    | TrainRequest
    | GenerateRequest
    | ProcessesRequest
    | ProcessStatusRequest
    | CancelRequest
    | DownloadRequest
    | DownloadByKeyRequest
    | DownloadFileRequest
    | ListModelsRequest
    | ListFilesRequest
    | BulkDownloadRequest
    | DeleteResultsRequest
    | UploadRequest
    | CreateUploadRequest
    | CompleteUploadRequest
    | AbortUploadRequest
    | ClearLogsRequest
    | ListDatasetFoldersRequest
)
Request = Annotated[AnyRequest, Field(discriminator="type")]

_MODELS: dict[str, type[_Request]] = {
    name: model
    for model in get_args(AnyRequest)
    for name in get_args(model.model_fields["type"].annotation)
}
REQUEST_TYPES: tuple[str, ...] = tuple(_MODELS)


def parse_request(data: object) -> AnyRequest:
    """Return the request that a client's ``input`` means.

    Raises `InvalidRequest` with at most `MAX_PROBLEMS` problems, each with its field and what to
    do; nothing else, whatever the input is.
    """
    if not isinstance(data, Mapping):
        raise InvalidRequest(
            f"the input is {shown(data)}, not a mapping",
            remedy='Send {"input": {"type": ..., ...}}.',
        )
    kind = _type_of(data)
    model = _MODELS[kind]
    names = model.known_fields()
    known = {name: data[name] for name in names if data.get(name) is not None}
    problems: list[str] = []
    request = None
    try:
        request = model.model_validate({**known, "type": kind})
    except ValidationError as error:
        problems = _problems(error)
    if request is None:  # raised out here: a cause would keep the whole input alive
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise InvalidRequest(
            f"request {kind}: {count}", problems=problems,
            remedy="Correct the fields named above and send the request again.",
        )  # fmt: skip
    request._unknown = _unknown_of(data, names)
    return request  # type: ignore[return-value]  # the models are those of the union


def makes_process(data: object) -> bool:
    """Whether this input asks for work that becomes a process."""
    return isinstance(data, dict) and _kind_made_by(data) is not None


def process_of_job(data: Mapping[str, Any], job_id: str) -> str:
    """Return the id of the process that a queue's job makes, however often it is delivered.

    For inputs that make one; nothing else in them is looked at, so that it can be known before
    anything is checked.
    """
    given = data.get("idempotency_key")
    key = key_of_client(given) if isinstance(given, str) and given else key_of_job(job_id)
    return process_id_of((_kind_made_by(data) or GENERATION).name, key)


def _kind_made_by(data: Mapping[str, Any]) -> KindOfWork | None:
    """The kind of work that an input asks for; a prompt without a type asks for images."""
    if data.get("type") is None and "prompt" in data:
        return GENERATION
    return kind_started_by(data.get("type"))


def unknown_fields(request: AnyRequest) -> tuple[str, ...]:
    """Return one sentence for each field that was sent and has no effect; at most a few."""
    return request._unknown


def _type_of(data: Mapping[Any, Any]) -> str:
    kind = data.get("type")
    if kind is None and data.get("prompt") is not None:
        return "generate"
    if isinstance(kind, str) and kind in _MODELS:
        return kind
    if kind is None:
        problem = "type: missing"
    else:
        hint = nearest(kind[:MAX_SHOWN], REQUEST_TYPES) if isinstance(kind, str) else ""
        problem = f"type: {shown(kind)} is unknown{hint}"
    raise InvalidRequest(
        problem, remedy=f"Send one of these types: {', '.join(sorted(REQUEST_TYPES))}."
    )


def _blank(config: str | dict[str, Any] | None) -> bool:
    return config is None or (isinstance(config, str) and not config.strip())


def _parsed(config: str | dict[str, Any], what: str) -> dict[str, Any]:
    return yaml_text.load_mapping(config, what) if isinstance(config, str) else config


def _unknown_of(data: Mapping[Any, Any], names: list[str]) -> tuple[str, ...]:
    unknown = (key for key in data if not isinstance(key, str) or key not in names)
    sentences = []
    for key in islice(unknown, MAX_PROBLEMS):
        hint = nearest(key[:MAX_SHOWN], names) if isinstance(key, str) else ""
        sentences.append(f"unknown field {shown(key)} has no effect{hint}")
    more = sum(1 for _ in unknown)
    return (*sentences, *([f"{more} more unknown fields have no effect"] if more else []))


def _problems(error: ValidationError) -> list[str]:
    """Describe each finding once, with its field; the last line counts what is left out."""
    found = error.errors(include_url=False)
    problems = list(dict.fromkeys(described(problem) for problem in found))
    if len(problems) <= MAX_PROBLEMS:
        return problems
    left_out = len(problems) - MAX_PROBLEMS + 1
    return [*problems[: MAX_PROBLEMS - 1], f"and {left_out} more"]


_MESSAGES = {
    "missing": "missing; send it",
    "string_type": "must be text",
    "string_too_long": "has more than {max_length} characters; shorten it",
    "too_long": "has more than {max_length} characters; shorten it",
    "too_short": "is empty; fill it or leave it out",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
}


def described(problem: Any) -> str:
    """Say one finding of pydantic's in this project's words, with its field and what was given."""
    template = _MESSAGES.get(problem["type"])
    if template is None:
        message = str(problem["msg"]).removeprefix("Value error, ")
    else:
        message = template.format_map(problem.get("ctx", {}))
    location = problem["loc"]
    if not location:  # of the whole request: the message names the fields itself
        return message
    given = problem["input"]
    is_simple = isinstance(given, str | int | float) and location[-1] != "content"
    value = f" (got {shown(given)})" if is_simple else ""
    return f"{path_text(location)}: {message}{value}"
