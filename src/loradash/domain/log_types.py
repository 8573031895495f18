"""The logs that a client can name: one list for requests and for the files themselves."""

from typing import Literal, get_args

LogType = Literal["app", "requests", "errors", "system"]
"""The program's log, its requests, its errors, and the logs of the engines."""

ClearedLogs = Literal[LogType, "all"]

LOG_TYPES: tuple[LogType, ...] = get_args(LogType)
