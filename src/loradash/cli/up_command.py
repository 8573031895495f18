"""``loradash up``: the server."""

from typing import Annotated

import typer

from loradash.cli.lines import say

HOST = "127.0.0.1"  # nobody is asked for a password yet


def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address of this machine to listen at.")] = HOST,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="Listen where other machines can reach it, though anyone there may then use it.",
        ),
    ] = False,
    json_logs: Annotated[
        bool, typer.Option("--json-logs", help="Log as JSON lines, even at a terminal.")
    ] = False,
) -> None:
    """Run the server on this machine: API, queue, and a page that shows what it does.

    Ctrl-C or SIGTERM stops it: what runs writes a checkpoint and goes on at the next start. A
    second one ends it at once.
    """
    import sys
    from dataclasses import replace

    from loradash.allocator import return_large_blocks
    from loradash.cli.serving import serve
    from loradash.errors import InvalidSettings
    from loradash.listening import is_loopback, names_of
    from loradash.runtime.workspace import Workspace
    from loradash.settings import load_settings
    from loradash.telemetry import logging
    from loradash.wiring.server import make_server

    if not (allow_remote or is_loopback(host)):
        raise InvalidSettings(
            f"--host {host}: loradash has no accounts yet, so everyone who can reach that address "
            "could use this server",
            remedy="Leave --host out and use an SSH tunnel (ssh -L 8000:127.0.0.1:8000 MACHINE); "
            "or add --allow-remote where nobody else can reach it.",
        )
    return_large_blocks()
    settings = load_settings()
    workspace = Workspace(settings.workspace_path)
    workspace.ensure()
    as_json = json_logs or not sys.stderr.isatty()
    logging.configure(workspace.logs, settings.log_level, as_json=as_json, stream=sys.stderr)
    server = make_server(settings)
    server = replace(server, names=server.names | names_of(host))
    serve(server, host, port, on_ready=lambda url: say(f"loradash is ready: {url}"))
