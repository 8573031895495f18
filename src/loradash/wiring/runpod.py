"""What a control plane and a worker need to send jobs to a RunPod endpoint."""

from loradash.executors.runpod_client import RunpodClient
from loradash.executors.runpod_rules import JobRules
from loradash.settings import Settings


def make_client(settings: Settings) -> RunpodClient:
    """Return the client of the endpoint. Raises `InvalidSettings` if key or endpoint is missing."""
    return RunpodClient(
        api_key=settings.runpod_api_key.get_secret_value(),
        endpoint_id=settings.runpod_endpoint_id,
        base_url=settings.runpod_base_url,
    )


def job_rules(settings: Settings) -> JobRules:
    """Return how jobs are sent and looked after."""
    return JobRules(
        timeout_s=settings.timeouts_s(),
        take_timeout_s=settings.take_timeout_s,
        webhook=settings.runpod_webhook,
    )
