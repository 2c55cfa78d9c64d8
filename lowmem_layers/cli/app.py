"""The command group: all commands, in the order in which a newcomer needs them."""

from __future__ import annotations

from collections.abc import Mapping

import click

from lowmem_layers._version import __version__
from lowmem_layers.cli.acting import proxies, prune
from lowmem_layers.cli.asking import items, power
from lowmem_layers.cli.bits import bits
from lowmem_layers.cli.examples import COMPLETION, epilog
from lowmem_layers.cli.listing import doctor, models, tasks
from lowmem_layers.cli.plan import plan
from lowmem_layers.cli.results import compare, importance, interactions, report, scores, tables
from lowmem_layers.cli.run import run
from lowmem_layers.errors import did_you_mean

_COMMANDS: Mapping[str, click.Command] = {
    "run": run,
    "plan": plan,
    "importance": importance,
    "scores": scores,
    "report": report,
    "compare": compare,
    "interactions": interactions,
    "tables": tables,
    "prune": prune,
    "bits": bits,
    "proxies": proxies,
    "power": power,
    "items": items,
    "models": models,
    "tasks": tasks,
    "doctor": doctor,
}


class _InOrder(click.Group):
    """A group that lists its commands in the given order, and names the nearest command for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            meant = did_you_mean(name, self.commands).rstrip()
            raise click.UsageError(f"there is no command {name!r}{'; ' if meant else ''}{meant}", ctx)
        return super().resolve_command(ctx, args)


for _name, _command in (*_COMMANDS.items(), *tasks.commands.items()):
    _command.epilog = epilog(_name) or _command.epilog


@click.group(
    cls=_InOrder,
    commands=_COMMANDS,
    epilog=COMPLETION,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from, for any command.")
@click.version_option(__version__, message="lowmem-layers %(version)s")
def app() -> None:
    """Measure which sublayers of a language model matter.

    Removes every window of neighbouring attention and feed-forward sublayers from a (quantised) language model, scores
    a task without them, and estimates the importance of each sublayer with an interval.

    Start with: lowmem-layers run
    """
