"""``loradash doctor``: what works here, what is off, and what to do about it."""

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Examine this installation. Exit code 1 if something that is needed is missing."""
    from loradash.cli.output import print_result
    from loradash.services.system.doctor import examine
    from loradash.settings import load_settings
    from loradash.storage.disk import DiskGuard
    from loradash.wiring.core import make_store

    settings = load_settings()
    findings = examine(settings, make_store(settings, DiskGuard()))
    bad = any(finding.verdict == "bad" for finding in findings)
    if as_json:
        print_result({"ok": not bad, "findings": [finding._asdict() for finding in findings]})
    else:
        from loradash.cli.terminal import print_facts

        colours = {"ok": "green", "off": "yellow", "bad": "red"}
        print_facts(
            (
                (finding.verdict, colours[finding.verdict]),
                finding.subject,
                finding.detail + (f"  ({finding.remedy})" if finding.remedy else ""),
            )
            for finding in findings
        )
    raise typer.Exit(1 if bad else 0)
