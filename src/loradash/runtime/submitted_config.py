"""The config that a process was submitted with."""

from loradash.domain.process import ProcessRecord
from loradash.storage import keys


def config_key(record: ProcessRecord) -> str:
    """Return the key of the config that a process runs with."""
    return record.config_key or keys.result_config(record.id)
