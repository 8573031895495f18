import os
import re
from pathlib import Path

import pytest

from loradash.errors import InvalidSettings
from loradash.settings import Settings, load_settings, unknown_settings

from .conftest import environment_names

EXAMPLE = Path(__file__).parents[2] / ".env.example"
_LINE = re.compile(r"^(?:# ?)?([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)


def test_every_setting_is_in_the_example_file():
    listed = {name for name, _ in _LINE.findall(EXAMPLE.read_text(encoding="utf-8"))}
    missing = {
        name: names for name, names in environment_names().items() if listed.isdisjoint(names)
    }
    assert not missing


def test_every_variable_of_the_example_file_is_a_setting():
    known = {name for names in environment_names().values() for name in names}
    listed = [name for name, _ in _LINE.findall(EXAMPLE.read_text(encoding="utf-8"))]
    assert listed
    assert set(listed) <= known
    assert len(set(listed)) == len(listed)


def test_the_values_of_the_example_file_are_accepted(clean_environment, tmp_path):
    lines = [
        f"{name}={value}" for name, value in _LINE.findall(EXAMPLE.read_text(encoding="utf-8"))
    ]
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8")
    load_settings()


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())


def test_without_any_variable_the_defaults_are_usable(clean_environment):
    settings = load_settings()
    assert settings.device == "auto"
    assert settings.workspace_path.is_absolute()
    assert settings.workspace_path != settings.objects_path
    assert not settings.offline


VALUES = {
    "workspace_path": "/somewhere/else",
    "objects_path": "/somewhere/more",
    "objects_shared": "true",
    "engine": "other",
    "s3_bucket": "my-bucket",
    "s3_region": "eu-west-1",
    "s3_endpoint_url": "https://s3.example.com",
    "s3_public_endpoint_url": "https://files.example.com",
    "s3_prefix": "loradash",
    "s3_addressing": "virtual",
    "s3_access_key_id": "another",
    "s3_secret_access_key": "another",
    "s3_session_token": "another",
    "s3_capabilities": "presign=off",
    "s3_concurrency": "3",
    "s3_part_mb": "64",
    "s3_part_concurrency": "3",
    "s3_timeout_s": "12.5",
    "s3_complete_timeout_s": "12.5",
    "s3_url_expiry_s": "60",
    "max_retries": "0",
    "store_patience_s": "0",
    "max_file_mb": "7",
    "max_upload_mb": "7",
    "max_upload_files": "7",
    "min_free_disk_mb": "0",
    "device": "cuda:1",
    "threads": "3",
    "offline": "true",
    "training_timeout_s": "12.5",
    "generation_timeout_s": "12.5",
    "stall_timeout_s": "12.5",
    "stop_grace_s": "0",
    "idle_unload_s": "12.5",
    "cancel_grace_s": "12.5",
    "database_url": "postgresql+psycopg://me@db/loradash",
    "registry": "objects",
    "executor": "runpod",
    "runpod_api_key": "another",
    "runpod_endpoint_id": "another",
    "runpod_base_url": "http://127.0.0.1:8000/v2",
    "runpod_pod_id": "pod-1",
    "runpod_max_jobs": "7",
    "runpod_webhook": "https://example.org/done",
    "take_timeout_s": "12.5",
    "require_gpu": "true",
    "lease_s": "12.5",
    "max_attempts": "7",
    "training_memory_mb": "0",
    "generation_memory_mb": "0",
    "file_retention_days": "0",
    "allowed_paths": "/models:/data",
    "cors_origins": "https://one.example, https://two.example",
    "max_request_mb": "1",
    "server_url": "http://127.0.0.1:8000",
    "log_level": "DEBUG",
    "debug": "1",
}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_name_of_a_variable_sets_its_setting(field, clean_environment):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # a bucket needs them
        clean_environment.setenv(name, "key")
    default = getattr(load_settings(), field)
    for name in environment_names()[field]:
        with clean_environment.context() as environment:
            environment.setenv(name, VALUES[field])
            assert getattr(load_settings(), field) != default


def test_the_registry_is_a_file_in_the_workspace_unless_another_one_is_named(clean_environment):
    clean_environment.setenv("WORKSPACE_PATH", "/somewhere/else")
    assert load_settings().registry_url == "sqlite:////somewhere/else/registry.sqlite3"
    clean_environment.setenv("DATABASE_URL", "postgresql+psycopg://me@db/loradash")
    assert load_settings().registry_url == "postgresql+psycopg://me@db/loradash"


def test_the_registry_of_a_relative_workspace_has_a_full_path(clean_environment, tmp_path):
    clean_environment.setenv("WORKSPACE_PATH", "here")
    assert load_settings().registry_url == f"sqlite:///{tmp_path}/here/registry.sqlite3"


def test_the_env_file_of_the_working_directory_is_read(clean_environment, tmp_path):
    (tmp_path / ".env").write_text("TRAINING_TIMEOUT=5\nSOMETHING_ELSE=x\n", encoding="utf-8")
    assert load_settings().training_timeout_s == 5


def test_the_environment_comes_before_the_env_file(clean_environment, tmp_path):
    (tmp_path / ".env").write_text("TRAINING_TIMEOUT=5\n", encoding="utf-8")
    clean_environment.setenv("TRAINING_TIMEOUT", "6")
    assert load_settings().training_timeout_s == 6


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_bucket_without_credentials_is_refused_with_the_name_of_what_is_missing(
    missing, clean_environment
):
    for name in ("S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        clean_environment.setenv(name, "given")
    load_settings()
    clean_environment.delenv(missing)
    with pytest.raises(InvalidSettings, match=missing) as caught:
        load_settings()
    assert "given" not in str(caught.value)


def test_the_secret_is_not_shown(clean_environment):
    clean_environment.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    clean_environment.setenv("AWS_SESSION_TOKEN", "hush")
    assert "hush" not in f"{load_settings()!r} {load_settings().model_dump()}"


def test_an_empty_variable_counts_as_not_set(clean_environment):
    clean_environment.setenv("TRAINING_TIMEOUT", "")
    assert load_settings().training_timeout_s == 7200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINING_TIMEOUT", "two hours"),
        ("TRAINING_TIMEOUT", "0"),
        ("TRAINING_TIMEOUT", "nan"),
        ("GENERATION_TIMEOUT", "-1"),
        ("LORADASH_STALL_TIMEOUT", "x"),
        ("LORADASH_STOP_GRACE", "-0.5"),
        ("LORADASH_IDLE_UNLOAD", "0"),
        ("LORADASH_THREADS", "many"),
        ("LORADASH_THREADS", "-1"),
        ("LORADASH_THREADS", "100000"),
        ("LORADASH_OFFLINE", "perhaps"),
        ("HF_HUB_OFFLINE", "perhaps"),
        ("LORADASH_DEVICE", "gpu"),
        ("LORADASH_DEVICE", "cuda:x"),
        ("DEBUG", "perhaps"),
        ("LORADASH_CANCEL_GRACE", "-1"),
        ("LORADASH_CANCEL_GRACE", "61"),
        ("LORADASH_LEASE", "2"),
        ("LORADASH_LEASE", "3601"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_ATTEMPTS", "1.5"),
        ("LORADASH_TRAINING_MEMORY_MB", "-1"),
        ("LORADASH_GENERATION_MEMORY_MB", "much"),
        ("FILE_RETENTION_DAYS", "-1"),
        ("FILE_RETENTION_DAYS", "nan"),
        ("LORADASH_MAX_REQUEST_MB", "0"),
        ("LORADASH_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_variable(name, value, clean_environment):
    clean_environment.setenv(name, value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    (problem,) = caught.value.problems
    assert name in problem
    assert value in problem
    assert caught.value.remedy


def test_all_bad_values_are_listed_at_once(clean_environment):
    clean_environment.setenv("TRAINING_TIMEOUT", "x")
    clean_environment.setenv("LORADASH_THREADS", "y")
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert len(caught.value.problems) == 2


def test_an_env_file_that_is_not_text_is_refused(clean_environment, tmp_path):
    (tmp_path / ".env").write_bytes("WORKSPACE_PATH=/m\xfcll\n".encode("latin-1"))
    with pytest.raises(InvalidSettings):
        load_settings()


RUNPOD_ELSEWHERE = "RUNPOD_ENDPOINT_BASE_URL=https://evil.example/v2"
S3_ELSEWHERE = "S3_BUCKET=b\nS3_ENDPOINT_URL=https://evil.example"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "geheim"}


@pytest.mark.parametrize(
    ("file", "exported", "names"),
    [
        (RUNPOD_ELSEWHERE, {"RUNPOD_API_KEY": "geheim"},
         ("RUNPOD_ENDPOINT_BASE_URL", "RUNPOD_API_KEY")),
        (RUNPOD_ELSEWHERE.lower(), {"runpod_api_key": "geheim"},
         ("RUNPOD_ENDPOINT_BASE_URL", "RUNPOD_API_KEY")),
        (f"{RUNPOD_ELSEWHERE}\nRUNPOD_API_KEY=other", {"RUNPOD_API_KEY": "geheim"},
         ("RUNPOD_ENDPOINT_BASE_URL", "RUNPOD_API_KEY")),
        (f"export {S3_ELSEWHERE}", S3_KEYS, ("S3_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY")),
        (f"{S3_ELSEWHERE}\nAWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b",
         {"AWS_SESSION_TOKEN": "geheim"}, ("S3_ENDPOINT_URL", "AWS_SESSION_TOKEN")),
    ],
)  # fmt: skip
def test_a_file_does_not_say_where_secrets_of_the_environment_go(
    clean_environment, monkeypatch, tmp_path, file, exported, names
):
    (tmp_path / ".env").write_text(file, encoding="utf-8")
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=r"\.env of this folder") as caught:
        load_settings()
    assert all(name in caught.value.message for name in names)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "exported"),
    [
        (f"{RUNPOD_ELSEWHERE}\nRUNPOD_API_KEY=key", {}),
        ("RUNPOD_API_KEY=key", {"RUNPOD_ENDPOINT_BASE_URL": "https://mine.example/v2"}),
        ("LORADASH_EXECUTOR=runpod\nRUNPOD_ENDPOINT_ID=abc\nS3_BUCKET=b",
         {"RUNPOD_API_KEY": "key", **S3_KEYS}),
        ("RUNPOD_ENDPOINT_BASE_URL=https://api.runpod.ai/v2/", {"RUNPOD_API_KEY": "key"}),
        (RUNPOD_ELSEWHERE, {"RUNPOD_API_KEY": "key", "RUNPOD_ENDPOINT_BASE_URL": "https://m.e/v2"}),
        (RUNPOD_ELSEWHERE, {"RUNPOD_API_KEY": "", **S3_KEYS}),
        (f"{S3_ELSEWHERE}\nAWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b", {}),
        ("S3_BUCKET=b\nS3_REGION=eu-west-1", S3_KEYS),
        ("S3_ENDPOINT_URL=", {"S3_BUCKET": "b", **S3_KEYS}),
        ("", {"S3_BUCKET": "b", "S3_ENDPOINT_URL": "https://s3.example", **S3_KEYS}),
    ],
)  # fmt: skip
def test_common_ways_to_set_secrets_and_addresses_work(
    clean_environment, monkeypatch, tmp_path, file, exported
):
    (tmp_path / ".env").write_text(file, encoding="utf-8")
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    load_settings()


def test_a_value_that_is_refused_is_shown_without_its_password(clean_environment, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "https://me:geheim@s3.example/path")
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert "s3.example" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_misspelt_setting_is_named_with_the_nearest_one(clean_environment, tmp_path, monkeypatch):
    monkeypatch.setenv("LORADASH_EXECUTER", "runpod")
    monkeypatch.setenv("LORADASH_LEASE", "30")
    (tmp_path / ".env").write_text("LORADASH_DEVISE=cpu\n")
    assert unknown_settings() == [
        "LORADASH_DEVISE isn't a setting of loradash; did you mean 'LORADASH_DEVICE'?",
        "LORADASH_EXECUTER isn't a setting of loradash; did you mean 'LORADASH_EXECUTOR'?",
    ]


def test_known_settings_are_no_reason_for_a_warning(clean_environment, monkeypatch):
    for names in environment_names().values():
        for name in names:
            monkeypatch.setenv(name, "x")
    assert unknown_settings() == []


@pytest.mark.parametrize("variable", ["WORKSPACE_PATH", "S3_BUCKET", "LORADASH_DEVICE"])
@pytest.mark.parametrize("value", ["a\x1b[2J", os.fsdecode(b"a\x83")])
def test_a_setting_that_is_no_text_is_refused_by_its_name(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable}: the character U+")


def test_a_secret_that_is_no_text_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush\x1b")
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert "AWS_SECRET_ACCESS_KEY: the character U+001B" in str(caught.value)
    assert "hush" not in str(caught.value)
