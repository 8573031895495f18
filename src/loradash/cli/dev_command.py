"""``loradash dev``: what helps in developing."""

from typing import Annotated

import typer

from loradash.cli.lines import say

dev = typer.Typer(
    help="Try things without an account.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dev.callback()
def _dev() -> None:
    """Try things without an account."""


@dev.command("queue")
def queue(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8100,
    requeue_after: Annotated[
        float, typer.Option(min=0.05, help="Seconds without a ping until a job is requeued.")
    ] = 30.0,
    poll_hold: Annotated[
        float, typer.Option(min=0.05, help="Seconds for which a worker's poll is held.")
    ] = 10.0,
    retention: Annotated[
        float, typer.Option(min=0.05, help="Seconds for which results of /run are kept.")
    ] = 1800.0,
    max_deliveries: Annotated[
        int, typer.Option(min=1, help="A job fails after this many lost workers.")
    ] = 5,
    webhook_pause: Annotated[
        float, typer.Option(min=0.0, help="Seconds between tries of a webhook.")
    ] = 10.0,
    api_key: Annotated[str, typer.Option(help="API key of clients; default: any.")] = "",
    endpoint: Annotated[
        str, typer.Option(help="Endpoint id in the printed variables; any works.")
    ] = "local",
) -> None:
    """Emulate RunPod Serverless' queue on this machine, for clients and real workers.

    It keeps everything in memory and ends with Ctrl-C or SIGTERM.
    """
    import shlex

    from loradash.dev.app import create_app
    from loradash.dev.environment import worker_environment
    from loradash.dev.queue import Queue, Rules
    from loradash.dev.server import serve

    rules = Rules(
        requeue_after_s=requeue_after, retention_s=retention, max_deliveries=max_deliveries
    )

    def tell(url: str) -> None:
        variables = worker_environment(url, endpoint, "worker-1", "/nonexistent")
        del variables["HOME"]  # a person at a shell keeps their own
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        say(f"loradash dev queue is ready: {url}", *lines)

    serve(
        lambda cut: create_app(
            Queue(rules), api_key=api_key, poll_hold_s=poll_hold, webhook_pause_s=webhook_pause,
            cut=cut,
        ),
        port,
        on_ready=tell,
    )  # fmt: skip
