"""The -o language: what mount(8), overlayfs and fuse-overlayfs users write, as one frozen value.

Options are separated by commas. A backslash takes the next character as it is (overlayfs's `\\:` and `\\,`
in paths), and double quotes after `=` hold commas (SELinux's `context="…"`). Empty options are skipped.
Later ones win; several -o add up.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from unionfs import syscalls
from unionfs.idmap import UNMAPPED, IdMaps, parse_ranges
from unionfs.passthrough import Policy


class OptionError(Exception):
    """One option cannot be honoured; the message names it and says why, in one line."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything a mount depends on besides its mountpoint."""

    lowerdirs: tuple[str, ...] = ()
    upperdir: str | None = None
    workdir: str | None = None
    #: Flags of mount(2).
    flags: int = 0
    #: fsync(2) and copy-up reach the disk.
    sync: bool = True
    #: The workdir is marked, so that the upper layer is not trusted after a crash of the machine.
    volatile: bool = False
    #: Whiteouts are written as `.wh.` files even where devices can be made.
    markers: bool = False
    acl: bool = True
    xattrs: bool = True
    static_nlink: bool = False
    #: Seconds the kernel keeps names and attributes; None is for ever.
    timeout: float | None = None
    idmaps: IdMaps = UNMAPPED
    #: Directories that lower layers take part in can be renamed.
    redirect_dir: bool = False
    #: What needs no content is copied up without it.
    metacopy: bool = False
    #: Requests are answered where they are read (session/fastpath.pyx), not by pyfuse3's handlers.
    fastpath: bool = True
    #: Which files the kernel reads and writes in their layer itself.
    passthrough: Policy = Policy.AUTO
    #: A keeper starts the server anew if it dies.
    keeper: bool = False
    #: A file for the server's log, instead of the system's.
    log: str | None = None
    #: Options passed over, to be told of.
    ignored: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed: no upper layer, or `ro`."""
        return self.upperdir is None or bool(self.flags & syscalls.MS_RDONLY)


#: mount(8)'s words for mount(2)'s flags: (flag, whether the word sets it).
_FLAGS = {
    "ro": (syscalls.MS_RDONLY, True),
    "rw": (syscalls.MS_RDONLY, False),
    "nosuid": (syscalls.MS_NOSUID, True),
    "suid": (syscalls.MS_NOSUID, False),
    "nodev": (syscalls.MS_NODEV, True),
    "dev": (syscalls.MS_NODEV, False),
    "noexec": (syscalls.MS_NOEXEC, True),
    "exec": (syscalls.MS_NOEXEC, False),
    "sync": (syscalls.MS_SYNCHRONOUS, True),
    "async": (syscalls.MS_SYNCHRONOUS, False),
    "dirsync": (syscalls.MS_DIRSYNC, True),
    "noatime": (syscalls.MS_NOATIME, True),
    "atime": (syscalls.MS_NOATIME, False),
    "nodiratime": (syscalls.MS_NODIRATIME, True),
    "diratime": (syscalls.MS_NODIRATIME, False),
    "relatime": (syscalls.MS_RELATIME, True),
    "norelatime": (syscalls.MS_RELATIME, False),
    "strictatime": (syscalls.MS_STRICTATIME, True),
    "nostrictatime": (syscalls.MS_STRICTATIME, False),
    "lazytime": (syscalls.MS_LAZYTIME, True),
    "nolazytime": (syscalls.MS_LAZYTIME, False),
    "nosymfollow": (syscalls.MS_NOSYMFOLLOW, True),
}

#: Words for mount(8), for libfuse, or that ask for what is so anyway.
_NO_EFFECT = frozenset(
    "defaults auto noauto user nouser users owner group nogroup _netdev nofail silent loud mand nomand "
    "private rprivate slave rslave shared rshared unbindable runbindable "
    "allow_other allow_root default_permissions nonempty auto_unmount xino noxino ino32_t userxattr "
    "iversion noiversion symfollow".split()
)
_NO_EFFECT_WITH_VALUE = frozenset(
    "context fscontext defcontext rootcontext fsname subtype max_read max_write blksize comment fd "
    "user_id group_id rootmode plugins threaded fast_ino writeback xino uuid user cache_readdir "
    "max_idle_threads max_threads clone_fd timeout_entry timeout_attr".split()
)

#: Words that would be missed if a slip of the finger made others of them.
_OWN = (
    "lowerdir upperdir workdir volatile fsync noacl noxattrs static_nlink timeout redirect_dir metacopy "
    "uidmapping gidmapping squash_to_root squash_to_uid squash_to_gid fastpath nofastpath passthrough log "
    "keeper nokeeper"
).split()

#: Features of overlayfs that change what is on disk: only their default can be had.
_ONLY_OFF = {
    "index": ("off",),
    "nfs_export": ("off",),
    "verity": ("off",),
}

#: What a lenient reading takes; all else it passes over.
_KNOWN = frozenset((*_OWN, "lowerdir+", *_FLAGS, *_NO_EFFECT, *_NO_EFFECT_WITH_VALUE))


def parse(texts: Iterable[str], *, lenient: bool = False) -> Options:
    """Read the values of all -o arguments.

    `lenient`: an unknown option is passed over, whatever it looks like, and so is a feature that cannot be
    had; a container engine cannot be told of a slip. Raises OptionError.
    """
    options = Options()
    for text in texts:
        for option in split_options(text):
            name, has_value, value = option.partition("=")
            try:
                if lenient and name not in _KNOWN:
                    options = replace(options, ignored=(*options.ignored, option))
                else:
                    options = _with(options, name, value if has_value else None)
            except ValueError as error:
                raise OptionError(f"option '{option}': {error}") from None
    if not options.lowerdirs:
        raise OptionError("no lowerdir= is given: at least one layer to read is needed")
    if options.upperdir is None:
        return replace(options, workdir=None, flags=options.flags | syscalls.MS_RDONLY)
    if options.workdir is None:
        raise OptionError("upperdir= needs workdir=, an empty directory on the same filesystem")
    return options


def _with(options: Options, name: str, value: str | None) -> Options:
    """The options with one more taken in. Raises ValueError saying what is wrong with it."""
    if name in ("lowerdir", "lowerdir+", "upperdir", "workdir"):
        return _with_directory(options, name, value)
    if name in _FLAGS:
        flag, sets = _FLAGS[name]
        return replace(options, flags=options.flags | flag if sets else options.flags & ~flag)
    if name in ("uidmapping", "gidmapping", "squash_to_root", "squash_to_uid", "squash_to_gid"):
        return replace(options, idmaps=_with_ids(options.idmaps, name, value))
    if name == "volatile":
        return replace(options, sync=False, volatile=True)
    if name == "fsync":
        return replace(options, sync=_switch(value))
    if name == "noacl":
        return replace(options, acl=False)
    if name == "noxattrs":
        return replace(options, xattrs=value is not None and not _switch(value))
    if name == "static_nlink":
        return replace(options, static_nlink=True)
    if name == "redirect_dir":
        if value not in ("on", "off", "follow", "nofollow"):
            raise ValueError("on, off, follow or nofollow must follow")
        return replace(options, redirect_dir=value == "on")
    if name in ("fastpath", "nofastpath") and value is None:
        return replace(options, fastpath=name == "fastpath")
    if name in ("keeper", "nokeeper") and value is None:
        return replace(options, keeper=name == "keeper")
    if name == "passthrough":
        return replace(options, passthrough=_policy(value))
    if name == "metacopy":
        return replace(options, metacopy=_switch(value))
    if name == "timeout":
        return replace(options, timeout=_seconds(value))
    if name == "log":
        if not value:
            raise ValueError("a file must follow")
        return replace(options, log=unescape(value))
    if name in _ONLY_OFF:
        if value not in _ONLY_OFF[name]:
            raise ValueError(f"only {name}=off can be had")
        return options
    if name in _NO_EFFECT or name in _NO_EFFECT_WITH_VALUE or name.startswith("x-"):
        return options
    meant = difflib.get_close_matches(name, _OWN, n=1, cutoff=0.8)
    if meant:
        raise ValueError(f"there is no such option; is {meant[0]} meant?")
    return replace(options, ignored=(*options.ignored, name))


def _with_directory(options: Options, name: str, value: str | None) -> Options:
    if not value:
        raise ValueError("a directory must follow")
    if name == "upperdir":
        return replace(options, upperdir=unescape(value))
    if name == "workdir":
        return replace(options, workdir=unescape(value))
    if name == "lowerdir+":
        return replace(options, lowerdirs=(*options.lowerdirs, unescape(value)))
    layers = tuple(unescape(part) for part in split_escaped(value, ":"))
    if not all(layers):
        raise ValueError("a layer's name is empty")
    return replace(options, lowerdirs=layers)


def _with_ids(maps: IdMaps, name: str, value: str | None) -> IdMaps:
    if name == "squash_to_root":
        return IdMaps(replace(maps.uid, squash=0), replace(maps.gid, squash=0))
    of_users = "uid" in name
    ids = maps.uid if of_users else maps.gid
    if name.endswith("mapping"):
        ids = replace(ids, ranges=parse_ranges(value or ""))
    else:
        if value is None or not (value.isascii() and value.isdigit()) or int(value) >= 1 << 32:
            raise ValueError("not an id")
        ids = replace(ids, squash=int(value))
    return replace(maps, uid=ids) if of_users else replace(maps, gid=ids)


def _switch(value: str | None) -> bool:
    if value not in ("0", "1", "on", "off", "yes", "no", "true", "false"):
        raise ValueError("0 or 1 must follow")
    return value in ("1", "on", "yes", "true")


def _policy(value: str | None) -> Policy:
    try:
        return Policy(value)
    except ValueError:
        raise ValueError(f"one of {', '.join(policy.value for policy in Policy)} must follow") from None


def _seconds(value: str | None) -> float:
    try:
        seconds = float(value or "")
    except ValueError:
        raise ValueError("a number of seconds must follow") from None
    if not 0 <= seconds < float("inf"):
        raise ValueError("not a time to keep something for")
    return seconds


def split_options(text: str) -> list[str]:
    """Split at commas that are neither escaped nor in double quotes; escapes stay, empty parts go.

    Raises OptionError when quotes are not closed.
    """
    parts, quoted, start, position = [], False, 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == '"' and (quoted or text[position - 1 : position] == "="):
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    if quoted:
        raise OptionError(f"option '{text[start:]}': the quotes are not closed")
    parts.append(text[start:])
    return [part for part in parts if part]


def split_escaped(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash stands before; escapes stay."""
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def unescape(text: str) -> str:
    """Take each backslash away and the character after it as it is."""
    result, position = [], 0
    while position < len(text):
        if text[position] == "\\" and position + 1 < len(text):
            position += 1
        result.append(text[position])
        position += 1
    return "".join(result)


def escape(path: str) -> str:
    """Write a path so that it can stand in lowerdir=, upperdir= and workdir=."""
    return "".join("\\" + character if character in "\\:," else character for character in path)
