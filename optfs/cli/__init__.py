"""The command `optfs`: finds the subcommand, runs it, and turns its failure into one line and an exit code.

Subcommands are modules of this package with a click command named `command`, imported only when they run: `optfs --version` and
`--help` load none of the libraries that a mount needs.

Exit codes: 0 done; 1 a bug, a check that failed, or output that can't be written; 2 wrong usage or configuration; 3 the token or the
credentials were refused; 4 the service can't be reached; 5 FUSE is missing or refuses; 128 and the
number of a signal that ended it before it was done (130 interrupted, 143 terminated).
"""

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

import optfs
from optfs.errors import AccessError, ConfigError, DeadlineExceeded, MountError, OptfsError, ServiceError

COMMANDS = {
    "mount": "Mount the export at a folder.",
    "umount": "Unmount it.",
    "status": "Show what is mounted, and how it fares.",
    "doctor": "Check everything that a mount needs.",
    "cache": "Look at, empty or verify the block cache.",
    "demo": "Try it on generated data, without an account.",
}
"""Subcommands and their short help, so that `--help` need not import them."""

LOGGING = frozenset({"mount", "doctor"})
"""Subcommands that have `--log-level` and `--log-file`."""

_EXIT_CODES: tuple[tuple[type[OptfsError], int], ...] = (
    (ConfigError, 2),
    (AccessError, 3),
    (ServiceError, 4),
    (DeadlineExceeded, 4),
    (MountError, 5),
)


class _Lazy(click.Group):
    """A group that imports a subcommand when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"optfs.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}; did you mean {near[0]}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(optfs.__version__, prog_name="optfs")
def group() -> None:
    """Mount an Optimizely experimentation export as a read-only local folder."""


def exit_code(error: OptfsError) -> int:
    """Return the exit code that stands for an error; 1 for those that no command should end with."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def is_source(word: str) -> bool:
    """Return whether a word is what fstab has as SOURCE: `optfs`, or an account's id; of what an account may be called, a number alone."""
    return word in {"optfs", "none"} or word.isdecimal() or word.startswith("optfs#")


def arranged(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the command `mount` in front where they come as mount(8) calls a helper.

    `mount -t fuse.optfs SOURCE MOUNTPOINT -o …` runs `optfs SOURCE MOUNTPOINT -o …` (mount.fuse3(8)), where mount(8) adds `-o rw` by itself
    and an empty source is left out. A mistyped command is no source.
    """
    words = [word for word in arguments[:2] if not word.startswith("-")]
    if not words or words[0] in COMMANDS or words[0] != arguments[0]:
        return list(arguments)
    source = len(words) == 2 and is_source(words[0])
    given = any(word.startswith("-o") for word in arguments) and (len(words) == 2 or words[0].startswith("/"))
    return ["mount", *arguments] if source or given else list(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run optfs and return its exit code; nothing is raised."""
    _open_standard_streams()
    _take_own_home()
    words = arranged(sys.argv[1:] if arguments is None else arguments)
    try:
        result = group.main(words, prog_name="optfs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        return _tell(error.ctx.get_help() if error.ctx else "", 2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "optfs"
        return _fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except OptfsError as error:
        return _fail(error.message, exit_code(error))
    except (KeyboardInterrupt, click.exceptions.Abort):
        return 130
    except BrokenPipeError:
        _discard(sys.stdout)  # its reader went away
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: a line instead of a traceback
        if isinstance(error, OSError) and _is_of_output(error):
            _discard(sys.stdout)
            return _fail(f"the output can't be written: {error.strerror}", 1)
        return _fail(_unexpected(error, words[0] if words else ""), 1)
    return result if isinstance(result, int) else 0


def _open_standard_streams() -> None:
    """Lead what is closed of the descriptors 0 to 2 nowhere: else what is opened next gets its number, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _take_own_home() -> None:
    """Have HOME lead to the user's own home where it leads to another user's: mount(8) leaves root's there for `user` in fstab, as sudo may."""
    import pwd

    home = os.environ.get("HOME")
    with contextlib.suppress(KeyError):
        if home and _is_anothers(home):
            os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir


def _is_anothers(home: str) -> bool:
    """Return whether a folder is another user's home, or one that we can't look into."""
    import pwd
    from pathlib import Path

    try:
        owner = Path(home).stat().st_uid
        if owner == os.geteuid() or os.access(home, os.W_OK):
            return False
        return not os.access(home, os.R_OK | os.X_OK) or pwd.getpwuid(owner).pw_dir == home
    except PermissionError:
        return True
    except (OSError, KeyError):
        return False


def _fail(message: str, code: int) -> int:
    return _tell("optfs: " + " ".join(message.split()), code)


def _tell(text: str, code: int) -> int:
    try:
        click.echo(text, err=True)
    except OSError:
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Lead a stream nowhere that failed: what is left in it must not fail again when the interpreter flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_of_output(error: OSError) -> bool:
    """Return whether it was raised by `click.echo`, by which every command prints."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not click.echo.__code__:
        trace = trace.tb_next
    return trace is not None


def _unexpected(error: Exception, command: str) -> str:
    """Return what is said of a bug: where its traceback is, or what is known of it where the command keeps no log."""
    import logging
    import traceback
    from pathlib import Path

    from optfs.cli.status import visible
    from optfs.service.logs import redact

    kind = type(error).__name__
    if command in LOGGING:
        logging.getLogger("optfs.cli").debug("unexpected", exc_info=error)
        return f"unexpected {kind}: this is a bug; run with --log-level debug --log-file FILE and look there"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {kind} in {Path(frame.filename).name}, line {frame.lineno}: {visible(redact(str(error)))}; this is a bug"
