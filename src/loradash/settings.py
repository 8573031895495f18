"""Every environment variable that loradash reads, in one place; `.env.example` lists the same.

Settings are read once, when a command starts. Everything else gets its values as arguments.
"""

import os
from pathlib import Path
from typing import Annotated

from platformdirs import user_data_path
from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from loradash.errors import InvalidSettings


def _default_workspace() -> Path:
    return user_data_path("loradash") / "workspace"


def _default_objects() -> Path:
    return user_data_path("loradash") / "objects"


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
        description="SQLAlchemy URL of the registry; default: registry.sqlite3 in the workspace.",
    )
    lease_s: Annotated[float, Field(ge=3, le=3600)] = Field(
        30,
        validation_alias="LORADASH_LEASE",
        description="Seconds without a sign of its worker after which a process is taken over.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        3,
        validation_alias="MAX_ATTEMPTS",
        description="Give a process up after its worker was lost this often in a row without any "
        "progress.",
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
        256,
        validation_alias="LORADASH_MAX_REQUEST_MB",
        description="Largest request that the server reads, in MB of JSON.",
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

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.database_url or f"sqlite:///{self.workspace_path.absolute()}/registry.sqlite3"


def load_settings() -> Settings:
    """Read the environment and `.env`. Raises `InvalidSettings` that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"{_variable(problem['loc'])}: {problem['msg']} (got {str(problem['input'])[:80]!r})"
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


def _variable(location: tuple[int | str, ...]) -> str:
    """The variable that is really set, of those that a field goes by."""
    name = str(location[0])
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices) and name in alias.choices:
            return next((str(one) for one in alias.choices if str(one) in os.environ), name)
    return name
