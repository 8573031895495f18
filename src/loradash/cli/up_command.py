"""``loradash up``: the server."""

from typing import Annotated

import typer

HOST = "127.0.0.1"  # nobody is asked for a password yet


def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    json_logs: Annotated[
        bool, typer.Option("--json-logs", help="Log as JSON lines, even at a terminal.")
    ] = False,
) -> None:
    """Run the server on this machine: API, queue, and a page that shows what it does.

    Ctrl-C or SIGTERM stops it: what runs writes a checkpoint and goes on at the next start. A
    second one ends it at once.
    """
    import sys

    from loradash.cli.serving import serve
    from loradash.runtime.workspace import Workspace
    from loradash.settings import load_settings
    from loradash.telemetry import logging
    from loradash.wiring.server import make_server

    settings = load_settings()
    workspace = Workspace(settings.workspace_path)
    workspace.ensure()
    as_json = json_logs or not sys.stderr.isatty()
    logging.configure(workspace.logs, settings.log_level, as_json=as_json, stream=sys.stderr)
    server = make_server(settings)
    serve(server, HOST, port, on_ready=lambda url: print(f"loradash is ready: {url}", flush=True))
