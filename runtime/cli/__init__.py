"""unionctl: the command group. A command's module is imported when the command is used."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from runtime import rootless
from runtime.errors import RuntimeFailure, one_line
from runtime.root import Root, state_root

#: command name → where it is, as module:function.
COMMANDS = {
    "attach": "runtime.cli.containers:attach",
    "build": "runtime.cli.build:build",
    "builder": "runtime.cli.build:builder",
    "commit": "runtime.cli.layers:commit",
    "container": "runtime.cli.groups:container",
    "cp": "runtime.cli.copy:cp",
    "create": "runtime.cli.containers:create",
    "diff": "runtime.cli.containers:diff",
    "events": "runtime.cli.watching:events",
    "exec": "runtime.cli.containers:exec_",
    "export": "runtime.cli.layers:export",
    "history": "runtime.cli.layers:history",
    "image": "runtime.cli.groups:image",
    "images": "runtime.cli.images:images",
    "import": "runtime.cli.layers:import_",
    "info": "runtime.cli.system:info",
    "inspect": "runtime.cli.containers:inspect",
    "kill": "runtime.cli.containers:kill",
    "load": "runtime.cli.images:load",
    "login": "runtime.cli.registry:login",
    "logout": "runtime.cli.registry:logout",
    "logs": "runtime.cli.containers:logs",
    "network": "runtime.cli.networks:network",
    "pause": "runtime.cli.containers:pause",
    "port": "runtime.cli.watching:port",
    "ps": "runtime.cli.containers:ps",
    "pull": "runtime.cli.registry:pull",
    "push": "runtime.cli.registry:push",
    "rename": "runtime.cli.changes:rename",
    "restart": "runtime.cli.containers:restart",
    "rm": "runtime.cli.containers:rm",
    "rmi": "runtime.cli.images:rmi",
    "run": "runtime.cli.containers:run",
    "save": "runtime.cli.layers:save",
    "serve": "runtime.cli.serve:serve",
    "start": "runtime.cli.containers:start",
    "stats": "runtime.cli.watching:stats",
    "stop": "runtime.cli.containers:stop",
    "system": "runtime.cli.system:system",
    "tag": "runtime.cli.images:tag",
    "top": "runtime.cli.watching:top",
    "unpause": "runtime.cli.containers:unpause",
    "update": "runtime.cli.changes:update",
    "version": "runtime.cli.system:version",
    "volume": "runtime.cli.volumes:volume",
    "wait": "runtime.cli.containers:wait",
}

#: Commands that need no files but the user's own, or can do with those.
WITHOUT_NAMESPACES = ("login", "logout", "version")

#: As docker does: a failure of ours must be told from an exit status of the container's command.
FAILURE_IS_125 = ("run", "create")

pass_root = click.make_pass_decorator(Root)


class Lazy(click.Group):
    """A group that knows its commands by name, and imports the module of one when it is used."""

    commands_by_name = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, for --help."""
        return sorted({*self.commands_by_name, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of the command `cmd_name`; None when there is no such command."""
        if cmd_name not in self.commands_by_name:
            return super().get_command(ctx, cmd_name)
        module, _, function = self.commands_by_name[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command


class Main(Lazy):
    """The whole command, and the only place where errors become exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and end the process with docker's exit code; a failure is one line on stderr."""
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs)
        except click.exceptions.Exit as error:
            status = error.exit_code
        except click.Abort:
            click.echo(err=True)  # ends the line of ^C, or of the question
            status = 130
        except click.ClickException as error:
            status = _usage_error(error)
        except BrokenPipeError:
            # Whoever reads our output has had enough. Python would complain again when it flushes at exit.
            sys.stdout = None
            status = 1
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was chosen; RuntimeFailure and OSError become one line and an exit code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (RuntimeFailure, OSError) as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            click.echo(f"unionctl: {one_line(error)}", err=True)
            if isinstance(error, RuntimeFailure) and error.exit_code is not None:
                ctx.exit(error.exit_code)
            ctx.exit(125 if ctx.invoked_subcommand in FAILURE_IS_125 else 1)


def _usage_error(error: click.ClickException) -> int:
    """Say in one line what is wrong with the words of a command; docker's exit code for it."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".").replace(". (", " (")
    if "\n" in message:  # no words at all: the help itself
        error.show()
        return 1
    where = f"; see '{context.command_path} --help'" if context else ""
    click.echo(f"unionctl: {message[:1].lower()}{message[1:]}{where}", err=True)
    of_option = isinstance(error, click.BadParameter) and isinstance(error.param, click.Option)
    return 125 if of_option or isinstance(error, (click.NoSuchOption, click.BadOptionUsage)) else 1


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", "directory", metavar="DIR", help="Where images, containers and volumes are kept.")
@click.option("--debug", is_flag=True, help="Show where a failure comes from.")
@click.version_option(package_name="unionfs", message="unionctl version %(version)s")
@click.pass_context
def main(ctx: click.Context, directory: str | None, debug: bool) -> None:
    """Run containers whose root filesystem is a union mount."""
    root = Root(state_root(directory))
    asks = ctx.invoked_subcommand not in WITHOUT_NAMESPACES and not {"-h", "--help"} & set(sys.argv)
    # Where a user can have no namespaces, images can be kept all the same; `run` says what is missing.
    if os.geteuid() != 0 and asks and not rootless.hindrance():
        rootless.enter(root.path)
    ctx.obj = root
