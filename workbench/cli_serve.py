"""`workbench serve`: the model servers of this machine, started ahead of a sweep, looked at and stopped.

Experiments start what they need by themselves; a server that was started here stays until it is idle for long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import console, inputs
from workbench.errors import InputError

app = typer.Typer(help="Model servers: start, status, stop.", no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]


@app.command()
def start(
    trial: Annotated[
        Path | None, typer.Argument(metavar="[TRIAL.toml]", help="Whose models to serve; none: the default model.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. --set generate.model=NAME."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the servers that a trial asks, and leave them running until they are idle for long."""
    from workbench.progress import show_notes
    from workbench.serving.languages import Phases, own_servers, server_spec
    from workbench.settings import Settings
    from workbench.specs import Served

    machine = Settings.read()
    if machine.llm_url:
        raise InputError("WORKBENCH_LLM_URL is set: that service answers, and no server is started", where="serve")
    spec = inputs.trial(trial, settings or ([] if trial else ["generate.kind=answer"]))
    wanted = [stage for stage in (spec.context, spec.rerank, spec.generate) if isinstance(stage, Served)]
    if not wanted:
        raise InputError("this trial asks no language model", where=str(trial), hint="give it a [generate] table")
    servers = own_servers(machine)
    with show_notes(not as_json):
        found = {}
        for stage in wanted:
            status = servers.start(server_spec(stage, machine, machine.home / "cache"), Phases(stage.model))
            found[status.key] = status
    _report(list(found.values()), as_json)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """The servers that run."""
    from workbench.serving.languages import own_servers
    from workbench.settings import Settings

    _report(own_servers(Settings.read()).status(), as_json)


@app.command()
def stop(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="The beginning of a key; none: all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Stop one server, or all; whoever still needs it starts it again."""
    from workbench.serving.languages import own_servers
    from workbench.settings import Settings

    stopped = own_servers(Settings.read()).stop(key)
    if as_json:
        console.print_json({"stopped": stopped})
    else:
        console.say(f"stopped {console.count(len(stopped), 'server')}" if stopped else "no server runs")


def _report(servers: list[Any], as_json: bool) -> None:
    from workbench import display

    if as_json:
        console.print_json({"servers": [display.server_json(one) for one in servers]})
    else:
        display.show_servers(servers)
