"""`unionfs stats` and `unionfs explain`: what a mount's server tells (inspection.py), for people to read."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from unionfs import inspection

_STATS_EPILOG = """\
examples:
  unionfs stats /mnt                what was asked since the mount began, and how long answers took
  unionfs stats --watch 2 /mnt      the same every two seconds, with what was asked in between
  unionfs stats --json /mnt         all of it, for programs
"""

_EXPLAIN_EPILOG = """\
examples:
  unionfs explain /mnt/etc/passwd   the layer that each piece of the path comes from, and what is hidden
  unionfs explain /mnt/was/here     also of what is not there: which whiteout removed it
"""


class _Refusal(Exception):
    """One line for the user."""


def stats(arguments: Sequence[str]) -> int:
    """`unionfs stats [--watch SECONDS] [--json] MOUNTPOINT`. Returns the exit status."""
    parser = _parser("stats", "What the server of a mount has done.", _STATS_EPILOG)
    parser.add_argument("mountpoint")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS", help="go on, once every so many seconds")
    parsed = parser.parse_args(arguments)
    try:
        before = _show(parsed, None)
        while parsed.watch is not None:
            time.sleep(parsed.watch)
            before = _show(parsed, before)
    except _Refusal as refusal:
        print(f"unionfs stats: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def explain(arguments: Sequence[str]) -> int:
    """`unionfs explain [--json] PATH`. Returns the exit status."""
    parser = _parser("explain", "Which layers a path of a mount comes from.", _EXPLAIN_EPILOG)
    parser.add_argument("path")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parsed = parser.parse_args(arguments)
    try:
        pieces = _pieces(parsed.path)
    except _Refusal as refusal:
        print(f"unionfs explain: {refusal}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(pieces, indent=2))
    else:
        _print_pieces(pieces)
    return 0


def _parser(verb: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"unionfs {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise ValueError
    return seconds


def _ask(path: str, question: bytes) -> Any:
    """Raises _Refusal, and FileNotFoundError."""
    try:
        return json.loads(os.getxattr(path, question, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            raise _Refusal(
                f"'{path}': not on a mount of unionfs, or one of another user or mount namespace"
            ) from None
        raise _Refusal(f"'{path}': {error.strerror}") from None


# stats --------------------------------------------------------------------------------------------


def _show(parsed: argparse.Namespace, before: dict[str, Any] | None) -> dict[str, Any]:
    try:
        told: dict[str, Any] = _ask(parsed.mountpoint, inspection.STATS)
    except FileNotFoundError as error:
        raise _Refusal(f"'{parsed.mountpoint}': {error.strerror}") from None
    if parsed.json:
        print(json.dumps(told) if parsed.watch else json.dumps(told, indent=2), flush=True)
    else:
        _print_stats(told, before)
    return told


def _print_stats(told: dict[str, Any], before: dict[str, Any] | None) -> None:
    negotiated = told["negotiated"]
    copied = told["copied_up"]
    print(f"unionfs {told['version']}, process {told['pid']}, up {told['uptime_seconds']:.0f} s")
    print(f"upper        {told['upper'] or 'none: read only'}")
    print(f"lowers       {len(told['lowers'])}, the topmost {told['lowers'][0]}")
    print(f"with         {', '.join(name for name, on in negotiated.items() if on) or 'nothing'}")
    print(f"without      {', '.join(name for name, on in negotiated.items() if not on) or 'nothing'}")
    unsettled = f"; {copied['unsettled']} not on the disk yet" if copied["unsettled"] else ""
    print(f"copied up    {copied['files']} files, {_size(copied['bytes'])}{unsettled}")
    print(f"passed       {told['passed_through']} files through to the kernel")
    print(f"nodes        {told['nodes']}; {told['descriptors']} descriptors")
    print(f"memory       {_size(told['memory']['private'])} private of {_size(told['memory']['resident'])}")
    print(f"logged       {told['errors']} errors, {told['warnings']} warnings")
    print()
    earlier = {one["name"]: one["asked"] for one in before["requests"]} if before else {}
    more = "      more" if before else ""
    print(f"{'request':16}{'asked':>12}{more}{'native':>9}{'mean µs':>10}{'longest µs':>13}")
    for one in sorted(told["requests"], key=lambda one: -one["asked"]):
        more = f"{one['asked'] - earlier.get(one['name'], 0):>10}" if before else ""
        native = 100 * one["native"] // one["asked"]
        print(
            f"{one['name']:16}{one['asked']:>12}{more}{native:>8}%{one['mean_us']:>10}{one['longest_us']:>13}",
            flush=True,
        )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


# explain ------------------------------------------------------------------------------------------


def _pieces(path: str) -> list[dict[str, Any]]:
    """The pieces of a path; of what is not there, up to the first name that is not."""
    try:
        pieces: list[dict[str, Any]] = _ask(path, inspection.EXPLAIN)
        return pieces
    except FileNotFoundError as error:
        parent, name = os.path.split(path.rstrip("/"))
        if not name:
            raise _Refusal(f"'{path}': {error.strerror}") from None
    question = inspection.EXPLAIN + b"/" + os.fsencode(name)
    if len(question) > 255:
        raise _Refusal(f"'{path}': not there, and its last name is too long to ask about (239 bytes)")
    pieces = _pieces(parent or ".")
    if pieces[-1]["kind"] == "directory":
        with_name = dict(_ask(os.path.realpath(parent or "."), question))
        pieces.append(with_name)
    return pieces


def _print_pieces(pieces: list[dict[str, Any]]) -> None:
    for depth, piece in enumerate(pieces):
        name = _printable(piece["name"]) if depth else "/"
        print(f"{'  ' * depth}{name}  {piece['kind'] or 'not there'}")
        for layer in piece["layers"]:
            hidden = ", hidden" if layer["hidden"] else ""
            place = _printable(os.path.join(layer["layer"], layer["path"]))
            print(f"{'  ' * depth}    {layer['holds']}{hidden}  {place}")
        if not piece["layers"]:
            print(f"{'  ' * depth}    in no layer")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode() if text.isprintable() else ascii(text)[1:-1]
