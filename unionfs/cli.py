"""The commands `unionfs` and `mount.unionfs`: arguments become options, options a mount."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from unionfs import __version__
from unionfs.options import OptionError, parse

_DESCRIPTION = "Mount read-only layers and one writable layer as one tree (a union), by FUSE."

_EPILOG = """\
examples:
  unionfs -o lowerdir=/image,upperdir=/c1/upper,workdir=/c1/work /mnt
  unionfs -o lowerdir=/layer3:/layer2:/layer1 /mnt        read only: there is no upperdir
  mount -t fuse.unionfs unionfs /mnt -o lowerdir=/image,upperdir=/c1/upper,workdir=/c1/work
  umount /mnt

The first lowerdir is the topmost. A ':' ',' or '\\' in a path is written after a backslash.
"""


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [-f] [-d] [-o OPTION[,OPTION…]] [SOURCE] MOUNTPOINT",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", metavar="[SOURCE] MOUNTPOINT", help="where to mount")
    parser.add_argument("-o", dest="options", action="append", default=[], help="mount options")
    parser.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-d", dest="debug", action="store_true", help="log every request; implies -f")
    parser.add_argument("-V", "--version", action="version", version=f"unionfs version {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """`unionfs [SOURCE] MOUNTPOINT -o …`. Returns the exit status: 0, or 1 with a line on stderr."""
    return _run("unionfs", _parser("unionfs").parse_intermixed_args(arguments))


def mount_helper(arguments: Sequence[str] | None = None) -> int:
    """`mount.unionfs SOURCE MOUNTPOINT [-sfnv] [-o …] [-t TYPE]`, as mount(8) calls its helpers."""
    parser = _parser("mount.unionfs")
    parser.usage = "mount.unionfs SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"
    for word in ("-s", "-n", "-v"):
        parser.add_argument(word, action="store_true", help=argparse.SUPPRESS)
    for word in ("-N", "-t"):
        parser.add_argument(word, help=argparse.SUPPRESS)
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.foreground:
        return 0  # to mount(8), -f is "fake": all but the mount itself
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
    if len(places) > 2:
        return _refuse(program, f"'{places[2]}': more than a source and a mountpoint")
    try:
        options = parse(parsed.options)
    except OptionError as error:
        return _refuse(program, str(error))
    for name in options.ignored:
        print(f"{program}: unknown option ignored: {name}", file=sys.stderr)

    # Imported late: a wrong option, --version and --help are answered without FUSE.
    from unionfs.daemon import Mount, MountError, run

    level = logging.DEBUG if parsed.debug else logging.INFO
    logging.basicConfig(level=level, format=f"{program}: %(levelname)s: %(message)s")
    source = places[0] if len(places) == 2 else "unionfs"
    mount = Mount(options, os.path.realpath(places[-1]), source, debug=parsed.debug)
    try:
        run(mount, foreground=parsed.foreground or parsed.debug)
    except MountError as error:
        return _refuse(program, str(error))
    return 0


def _refuse(program: str, reason: str) -> int:
    print(f"{program}: {reason}", file=sys.stderr)
    return 1
