"""The commands `unionfs`, `mount.unionfs` and `fuse-overlayfs`: arguments become options, options a mount.

The last is `unionfs` by another name: a link called `fuse-overlayfs` to it stands in for that program, for
engines that look for it in PATH. Only whoever makes the link gets it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from unionfs import __version__
from unionfs.options import OptionError, parse

_DESCRIPTION = "Mount read-only layers and one writable layer as one tree (a union), by FUSE."

_EPILOG = """\
examples:
  unionfs -o lowerdir=/image,upperdir=/c1/upper,workdir=/c1/work /mnt
  unionfs -o lowerdir=/layer3:/layer2:/layer1 /mnt        read only: there is no upperdir
  mount -t fuse.unionfs unionfs /mnt -o lowerdir=/image,upperdir=/c1/upper,workdir=/c1/work
  umount /mnt
  unionfs stats /mnt                                      what its server has done
  unionfs explain /mnt/etc/passwd                         which layers a path comes from

The first lowerdir is the topmost. A ':' ',' or '\\' in a path is written after a backslash.
"""

_HELPER_EPILOG = """\
mount(8) calls this for:
  mount -t unionfs unionfs /mnt -o lowerdir=/image,upperdir=/c1/upper,workdir=/c1/work
"""

#: What else `unionfs` does, and where: asked for by its first word, and only without -o.
_VERBS = {
    "stats": "unionfs.inspection_cli:stats",
    "explain": "unionfs.inspection_cli:explain",
}

#: The name under which container engines look for us in PATH.
DROP_IN = "fuse-overlayfs"


class _Parser(argparse.ArgumentParser):
    """A wrong argument is one line and exit status 1, as everything that is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser(program: str, usage: str, epilog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        usage=f"{program} {usage}",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("places", nargs="*", metavar="[SOURCE] MOUNTPOINT", help="where to mount")
    parser.add_argument("-o", dest="options", action="append", default=[], help="mount options")
    parser.add_argument("-d", dest="debug", action="store_true", help="log every request; does not return")
    parser.add_argument("-V", "--version", action="version", version=_version(program))
    return parser


def _version(program: str) -> str:
    """What --version says; `podman info` shows all of it."""
    ours = f"unionfs version {__version__}"
    return ours if program != DROP_IN else f"{DROP_IN}: {ours}"


def main(arguments: Sequence[str] | None = None) -> int:
    """`unionfs [SOURCE] MOUNTPOINT -o …`. Returns the exit status: 0, or 1 with a line on stderr."""
    program = DROP_IN if os.path.basename(sys.argv[0]) == DROP_IN else "unionfs"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in _VERBS and not any(word.startswith("-o") for word in arguments):
        module, _, function = _VERBS[arguments[0]].partition(":")
        status: int = getattr(importlib.import_module(module), function)(arguments[1:])
        return status
    parser = _parser(program, "[-f] [-d] [-o OPTION[,OPTION…]] [SOURCE] MOUNTPOINT", _EPILOG)
    parser.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground")
    return _run(program, parser.parse_intermixed_args(arguments))


def mount_helper(arguments: Sequence[str] | None = None) -> int:
    """`mount.unionfs SOURCE MOUNTPOINT [-sfnv] [-o …] [-t TYPE]`, as mount(8) calls its helpers."""
    usage = "SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"
    parser = _parser("mount.unionfs", usage, _HELPER_EPILOG)
    parser.add_argument("-f", dest="fake", action="store_true", help="do all but the mount itself")
    for word in ("-s", "-n", "-v"):
        parser.add_argument(word, action="store_true", help="what mount(8) hands down; changes nothing")
    for word in ("-N", "-t"):
        parser.add_argument(word, help="what mount(8) hands down; changes nothing")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.fake:
        return 0
    return _run("mount.unionfs", parsed)


def _fill_standard_descriptors() -> None:
    """Let nothing we open become 0, 1 or 2, if the caller closed those."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd < 3:
        fd = os.dup(fd)
    os.close(fd)


def _run(program: str, parsed: argparse.Namespace) -> int:
    _fill_standard_descriptors()
    places: list[str] = parsed.places
    if not places:
        return _refuse(program, f"no mountpoint is given (see {program} --help)")
    if len(places) > 2:
        return _refuse(program, f"'{places[2]}': more than a source and a mountpoint")
    try:
        options = parse(parsed.options, lenient=program == DROP_IN)
    except OptionError as error:
        return _refuse(program, str(error))
    for name in options.ignored:
        print(f"{program}: unknown option ignored: {name}", file=sys.stderr)

    if "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT" in os.environ:
        options = replace(options, markers=True)

    # Imported late: a wrong option, --version and --help are answered without FUSE.
    from unionfs import logs
    from unionfs.daemon import Mount, MountError, run

    logs.to_stderr(program, debug=parsed.debug)
    source = places[0] if len(places) == 2 else "unionfs"
    mount = Mount(options, os.path.realpath(places[-1]), source, debug=parsed.debug)
    try:
        run(mount, foreground=getattr(parsed, "foreground", False) or parsed.debug)
    except MountError as error:
        return _refuse(program, str(error))
    return 0


def _refuse(program: str, reason: str) -> int:
    print(f"{program}: {reason}", file=sys.stderr)
    return 1


#: The commands by the name of their function.
COMMANDS = {"main": main, "mount_helper": mount_helper}
