"""Replies to requests about the server itself: its health and its logs."""

from loradash.domain.sizes import counted
from loradash.protocol import requests
from loradash.protocol.context import Context, Reply
from loradash.protocol.health_json import health_json
from loradash.services.use_cases import Services


def health(services: Services, request: requests.HealthRequest, context: Context) -> Reply:
    """Report the state of each part of the server."""
    del request, context
    return health_json(services.health.report())


def clear_logs(services: Services, request: requests.ClearLogsRequest, context: Context) -> Reply:
    """Empty log files."""
    del context
    cleared = services.log_files.clear(request.log_type)
    return {
        "message": f"{counted(len(cleared), 'log file')} cleared",
        "log_type": request.log_type,
        "cleared": [{"name": entry.name, "size": entry.size_bytes} for entry in cleared],
    }
