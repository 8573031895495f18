"""Every environment variable that loradash reads, in one place; `.env.example` lists the same.

Settings are read once, when a command starts. Everything else gets its values as arguments.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from loradash.domain.characters import printable
from loradash.domain.kinds import KINDS, Kind
from loradash.domain.schema import nearest
from loradash.errors import InvalidSettings
from loradash.telemetry.masking import is_secret_name, masked


def _default_workspace() -> Path:
    return user_data_path("loradash") / "workspace"


def _default_objects() -> Path:
    return user_data_path("loradash") / "objects"


def _endpoint(text: str) -> str:
    """Return an S3 provider's address. Raises `ValueError` for what can't be one."""
    if text and not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", text):
        raise ValueError(
            "give an address that begins with https:// or http://, perhaps with a path, without a "
            "query and without credentials"
        )
    return text.rstrip("/")


class Settings(BaseSettings):
    """The settings of one program run; see each field's description."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
    )

    workspace_path: Path = Field(
        default_factory=_default_workspace,
        validation_alias=AliasChoices("WORKSPACE_PATH", "LORADASH_WORKSPACE_PATH"),
        description="Where processes work: configs, outputs, datasets, logs.",
    )
    objects_path: Path = Field(
        default_factory=_default_objects,
        validation_alias="LORADASH_OBJECTS_PATH",
        description="Folder of the local object store: finished adapters, samples, images.",
    )
    objects_shared: bool = Field(
        False,
        validation_alias="LORADASH_OBJECTS_SHARED",
        description="The folder is a network volume that several machines write: no conditional "
        "writes, and one writer for each key.",
    )
    s3_bucket: str = Field(
        "",
        validation_alias="S3_BUCKET",
        description="Bucket of the object store; default: a local folder is used.",
    )
    s3_region: str = Field(
        "",
        validation_alias="S3_REGION",
        description="The bucket's region; default: as the endpoint's address says, or us-east-1.",
    )
    s3_endpoint_url: Annotated[str, AfterValidator(_endpoint)] = Field(
        "",
        validation_alias="S3_ENDPOINT_URL",
        description="Address of an S3 provider, without the bucket; default: Amazon's.",
    )
    s3_public_endpoint_url: Annotated[str, AfterValidator(_endpoint)] = Field(
        "",
        validation_alias="S3_PUBLIC_ENDPOINT_URL",
        description="Address of the same provider for those who get signed links; default: "
        "S3_ENDPOINT_URL.",
    )
    s3_prefix: str = Field(
        "",
        validation_alias="S3_PREFIX",
        description="What all keys in the bucket begin with, e.g. loradash.",
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        validation_alias="S3_ADDRESSING",
        description="Bucket in the path or in the host name; auto: as the provider wants it.",
    )
    s3_access_key_id: str = Field(
        "", validation_alias="AWS_ACCESS_KEY_ID", description="Key id of the S3 credentials."
    )
    s3_secret_access_key: SecretStr = Field(
        SecretStr(""),
        validation_alias="AWS_SECRET_ACCESS_KEY",
        description="Secret of the S3 credentials.",
    )
    s3_session_token: SecretStr = Field(
        SecretStr(""),
        validation_alias="AWS_SESSION_TOKEN",
        description="Session token, for temporary S3 credentials.",
    )
    s3_capabilities: str = Field(
        "",
        validation_alias="S3_CAPABILITIES",
        description="What the provider can do, where the probe is wrong: names of capabilities "
        "with =on or =off, separated by commas.",
    )
    s3_concurrency: Annotated[int, Field(ge=1, le=128)] = Field(
        16,
        validation_alias="S3_CONCURRENCY",
        description="Files of a batch that are sent or fetched at the same time.",
    )
    s3_part_mb: Annotated[int, Field(ge=5, le=512)] = Field(
        16,
        validation_alias="S3_PART_MB",
        description="Files larger than this many MB are sent in parts, and fetched in ranges.",
    )
    s3_part_concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        8,
        validation_alias="S3_PART_CONCURRENCY",
        description="Parts of one large file that are moved at the same time.",
    )
    s3_timeout_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        60,
        validation_alias="S3_TIMEOUT",
        description="Seconds without an answer after which a request to S3 is tried again.",
    )
    s3_complete_timeout_s: Annotated[float, Field(gt=0, le=24 * 3600)] = Field(
        7200,
        validation_alias="S3_COMPLETE_TIMEOUT",
        description="Seconds that a provider may take to put a large file's parts together.",
    )
    s3_url_expiry_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = Field(
        3600,
        validation_alias="S3_URL_EXPIRY",
        description="Seconds for which signed URLs are good.",
    )
    max_retries: Annotated[int, Field(ge=0, le=20)] = Field(
        3,
        validation_alias="MAX_RETRIES",
        description="How often a request to S3 is tried again before it counts as failed.",
    )
    store_patience_s: Annotated[float, Field(ge=0)] = Field(
        3600,
        validation_alias="LORADASH_STORE_PATIENCE",
        description="Seconds that a process waits for an object store or a registry that is away.",
    )
    max_file_mb: Annotated[int, Field(ge=1, le=5000)] = Field(
        100,
        validation_alias="MAX_FILE_SIZE_MB",
        description="Largest file of a dataset, in MB.",
    )
    max_upload_mb: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        500,
        validation_alias="MAX_UPLOAD_SIZE_MB",
        description="Largest upload of files to a dataset, in MB.",
    )
    max_upload_files: Annotated[int, Field(ge=1, le=100_000)] = Field(
        1000,
        validation_alias="MAX_UPLOAD_FILES",
        description="Most files of one upload.",
    )
    min_free_disk_mb: Annotated[int, Field(ge=0)] = Field(
        2048,
        validation_alias="LORADASH_MIN_FREE_DISK_MB",
        description="Free disk space, in MB, below which nothing is fetched or uploaded and a "
        "training stops with a checkpoint; 0 never does.",
    )
    engine: str = Field(
        "diffusers",
        pattern=r"^[a-z][a-z0-9_-]*$",
        validation_alias="LORADASH_ENGINE",
        description="Engine of trainings and generations that name none: diffusers, or scripted, "
        "which learns and draws nothing and shows how everything works.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        validation_alias="LORADASH_DEVICE",
        description="auto, cpu, cuda, cuda:1 or mps.",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        validation_alias="LORADASH_THREADS",
        description="CPU threads of an engine; 0 means all cores. Part of a training's exactness: "
        "a resumed training keeps the number that it began with.",
    )
    offline: bool = Field(
        False,
        validation_alias=AliasChoices("LORADASH_OFFLINE", "HF_HUB_OFFLINE"),
        description="Never download base models; use what is on this machine.",
    )
    training_timeout_s: Annotated[float, Field(gt=0)] = Field(
        7200,
        validation_alias="TRAINING_TIMEOUT",
        description="Seconds after which a training is stopped, with a checkpoint.",
    )
    generation_timeout_s: Annotated[float, Field(gt=0)] = Field(
        600,
        validation_alias="GENERATION_TIMEOUT",
        description="Seconds after which a generation is stopped.",
    )
    stall_timeout_s: Annotated[float, Field(gt=0)] = Field(
        1800,
        validation_alias="LORADASH_STALL_TIMEOUT",
        description="Seconds without any sign of life after which an engine is ended.",
    )
    stop_grace_s: Annotated[float, Field(ge=0)] = Field(
        30,
        validation_alias="LORADASH_STOP_GRACE",
        description="Seconds that an engine gets to write a checkpoint when it is asked to stop.",
    )
    idle_unload_s: Annotated[float, Field(gt=0)] = Field(
        300,
        validation_alias="LORADASH_IDLE_UNLOAD",
        description="Seconds without a generation after which the warm pipeline is unloaded.",
    )
    cancel_grace_s: Annotated[float, Field(ge=0, le=60)] = Field(
        2.5,
        validation_alias="LORADASH_CANCEL_GRACE",
        description="Seconds that a cancelled engine gets for a checkpoint before it is ended.",
    )
    database_url: str = Field(
        "",
        validation_alias="DATABASE_URL",
        description="URL of the registry's database: sqlite:////folder/file or "
        "postgresql://user:password@host/database; default: registry.sqlite3 in the workspace.",
    )
    registry: Literal["auto", "sql", "objects"] = Field(
        "auto",
        validation_alias="LORADASH_REGISTRY",
        description="Where records are kept: in the database (sql) or in the object store "
        "(objects); auto: in the object store for workers, and servers that use them, without "
        "DATABASE_URL.",
    )
    lease_s: Annotated[float, Field(ge=3, le=3600)] = Field(
        30,
        validation_alias="LORADASH_LEASE",
        description="Seconds for which no sign of its worker has to be seen until a process is "
        "taken over.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        3,
        validation_alias="MAX_ATTEMPTS",
        description="Give a process up after its worker was lost this often in a row without any "
        "progress.",
    )
    executor: Literal["local", "runpod"] = Field(
        "local",
        validation_alias="LORADASH_EXECUTOR",
        description="Where a server's trainings and generations run: on this machine (local), or "
        "on the workers of a RunPod Serverless endpoint (runpod).",
    )
    runpod_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias="RUNPOD_API_KEY",
        description="Key of the RunPod account, to send jobs to the endpoint.",
    )
    runpod_endpoint_id: str = Field(
        "",
        validation_alias="RUNPOD_ENDPOINT_ID",
        description="Id of the endpoint; RunPod sets it for workers.",
    )
    runpod_base_url: str = Field(
        "https://api.runpod.ai/v2",
        validation_alias="RUNPOD_ENDPOINT_BASE_URL",
        description="Address of RunPod's API of endpoints; for tests another one.",
    )
    runpod_pod_id: str = Field(
        "",
        pattern=r"^[\w.-]*$",
        validation_alias="RUNPOD_POD_ID",
        description="Name of this worker; RunPod sets it.",
    )
    runpod_max_jobs: Annotated[int, Field(ge=1, le=1000)] = Field(
        20,
        validation_alias="LORADASH_RUNPOD_MAX_JOBS",
        description="Jobs that are at RunPod at the same time, waiting or running; what waits here "
        "can still be given another priority.",
    )
    runpod_webhook: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        validation_alias="LORADASH_RUNPOD_WEBHOOK",
        description="URL that RunPod calls when a job has ended.",
    )
    take_timeout_s: Annotated[float, Field(ge=5, le=3600)] = Field(
        60,
        validation_alias="LORADASH_TAKE_TIMEOUT",
        description="Seconds that a worker may have a job without beginning its process; then the "
        "job is sent again.",
    )
    require_gpu: bool = Field(
        False,
        validation_alias="LORADASH_REQUIRE_GPU",
        description="A worker without a GPU takes no jobs.",
    )
    training_memory_mb: Annotated[int, Field(ge=0)] = Field(
        8192,
        validation_alias="LORADASH_TRAINING_MEMORY_MB",
        description="Free memory that a training waits for; at most 90 % of the GPU's or 25 % of "
        "RAM.",
    )
    generation_memory_mb: Annotated[int, Field(ge=0)] = Field(
        4096,
        validation_alias="LORADASH_GENERATION_MEMORY_MB",
        description="Free memory that a generation waits for before it starts beside a training.",
    )
    file_retention_days: Annotated[float, Field(ge=0)] = Field(
        7,
        validation_alias="FILE_RETENTION_DAYS",
        description="Days after which workspace files of ended processes are removed, if all of "
        "them are safely in the object store; 0 keeps them for ever.",
    )
    allowed_paths: str = Field(
        "",
        validation_alias="LORADASH_ALLOWED_PATHS",
        description="Folders, separated by ':', that requests to the server may name as base "
        "models, datasets and adapters, besides the workspace.",
    )
    cors_origins: str = Field(
        "",
        validation_alias="LORADASH_CORS_ORIGINS",
        description="Web origins, separated by commas, whose pages may use the server.",
    )
    max_request_mb: Annotated[int, Field(ge=1, le=4096)] = Field(
        96,
        validation_alias="LORADASH_MAX_REQUEST_MB",
        description="Largest job request that the server reads, in MB of JSON; those that are "
        "read and answered at a time hold twice as much together.",
    )
    server_url: str = Field(
        "",
        validation_alias="LORADASH_URL",
        description="Server that commands talk to, e.g. http://127.0.0.1:8000; default: they work "
        "on this machine's workspace themselves.",
    )
    log_level: str = Field(
        "info",
        pattern=r"^(?i:debug|info|warning|error)$",
        validation_alias="LORADASH_LOG_LEVEL",
        description="debug, info, warning or error: what the server logs.",
    )
    debug: bool = Field(
        False,
        validation_alias="DEBUG",
        description="Show tracebacks of errors in the terminal and in replies.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            printable(str(value))
        return value

    def timeouts_s(self) -> dict[Kind, float]:
        """Return how many seconds a process of each kind may take."""
        return {name: getattr(self, kind.timeout_setting) for name, kind in KINDS.items()}

    def memory_needs_mb(self) -> dict[Kind, float]:
        """Return the free memory in MB that a process of each kind waits for."""
        return {name: getattr(self, kind.memory_setting) for name, kind in KINDS.items()}

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.database_url or f"sqlite:///{self.workspace_path.absolute()}/registry.sqlite3"


def _given(problem: Mapping[str, Any]) -> str:
    """Say what was given, unless it's a secret."""
    if is_secret_name(_variable(problem["loc"])):
        return ""
    return f" (got {masked(str(problem['input']))[:80]!r})"


def load_settings() -> Settings:
    """Read the environment and `.env`. Raises `InvalidSettings` that names the variable."""
    try:
        settings = Settings()
        _refuse_redirected_secrets()
        return _with_credentials(settings)
    except ValidationError as error:
        problems = [
            f"{_variable(problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
            f"{_given(problem)}"
            for problem in error.errors()
        ]
        raise InvalidSettings(
            "settings can't be used",
            problems=problems,
            remedy="Correct these environment variables; .env.example describes each.",
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(
            f".env isn't UTF-8 text (byte {error.start})", remedy="Save the file as UTF-8."
        ) from error


def visible_devices() -> str | None:
    """Return CUDA's own setting of which GPUs its programs may use; None where it isn't set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def unknown_settings() -> list[str]:
    """Return a sentence for each variable that looks like a setting of ours and is none."""
    known = sorted(_known_variables())
    named = {name.upper() for name in (*os.environ, *DotEnvSettingsSource(Settings).env_vars)}
    return [
        f"{name} isn't a setting of loradash{nearest(name, known)}"
        for name in sorted(named)
        if name.startswith("LORADASH_") and name not in known
    ]


def _known_variables() -> set[str]:
    names = set()
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        names |= {str(choice) for choice in choices}
    return names


_SENT_TO = {
    "RUNPOD_ENDPOINT_BASE_URL": ("RUNPOD_API_KEY",),
    "S3_ENDPOINT_URL": ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"),
}
"""Addresses, and the secrets that are used there."""


def _refuse_redirected_secrets() -> None:
    """Refuse an address of `.env` for a secret of the environment.

    `.env` is that of whatever folder a command happens to start in; who has a key exported didn't
    mean it for an address that a stranger's folder names. The default address may be repeated.
    """
    environment = {name.upper() for name, value in os.environ.items() if value}
    file = DotEnvSettingsSource(Settings).env_vars
    defaults = {str(field.validation_alias): field.default
                for field in Settings.model_fields.values()}  # fmt: skip
    for address, secrets in _SENT_TO.items():
        given = (file.get(address.lower()) or "").rstrip("/")
        if address in environment or not given or given == defaults[address]:
            continue
        exported = [name for name in secrets if name in environment]
        if exported:
            raise InvalidSettings(
                f"{address} comes from the file .env of this folder, and {exported[0]} from the "
                "environment: the file would send your secret to an address that it chooses",
                remedy="Put both into .env, or both into the environment.",
            )


def _with_credentials(settings: Settings) -> Settings:
    """Return settings whose bucket can be reached, as far as settings can tell."""
    given = {
        "AWS_ACCESS_KEY_ID": settings.s3_access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
    }
    missing = [name for name, value in given.items() if settings.s3_bucket and not value]
    if missing:
        raise InvalidSettings(
            f"S3_BUCKET is set, but {' and '.join(missing)} is missing",
            remedy="Set the bucket's credentials, or unset S3_BUCKET to use a local folder.",
        )
    return settings


def _variable(location: tuple[int | str, ...]) -> str:
    """The variable that is really set, of those that a field goes by."""
    name = str(location[0])
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices) and name in alias.choices:
            return next((str(one) for one in alias.choices if str(one) in os.environ), name)
    return name
