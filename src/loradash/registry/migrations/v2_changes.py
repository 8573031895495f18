"""Version 2: which processes have changed last, for the change feed."""

from sqlalchemy import Connection

_STATEMENTS = (
    """
    CREATE TABLE process_changes (
        process_id VARCHAR NOT NULL,
        changed BIGINT NOT NULL,
        record BIGINT DEFAULT 0 NOT NULL,
        metrics BIGINT DEFAULT 0 NOT NULL,
        log BIGINT DEFAULT 0 NOT NULL,
        artifacts BIGINT DEFAULT 0 NOT NULL,
        PRIMARY KEY (process_id),
        FOREIGN KEY(process_id) REFERENCES processes (id)
    )
    """,
    "CREATE INDEX process_changes_newest ON process_changes (changed)",
)


def add_changes(connection: Connection) -> None:
    """Add the table; a process has a row from its next change on."""
    for statement in _STATEMENTS:
        connection.exec_driver_sql(statement)
