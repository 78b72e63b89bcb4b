"""The commands' beginning: a mount is started in milliseconds where one was made a short time before.

Most of a start is imports. So the first mount leaves a starter behind (starter.py): a process that has
imported all there is and forks for each mount that follows. Who finds none, or one that is not its like,
starts by itself, and nobody can tell the difference but by the clock.

Nothing is imported here that is not needed to ask.
"""

from __future__ import annotations

import os
import sys

#: Set to 0 to start alone and leave nothing behind; set to a path, starters are found below that directory.
SWITCH = "UNIONFS_STARTER"

#: What a starter says when the mount is its business from now on.
TAKEN = b"t"

#: Descriptors that one message can carry (SCM_MAX_FD, unix(7)).
_DESCRIPTORS_AT_MOST = 250

#: Arguments of mount(8)'s that change nothing for a starter; -f and -d stay with who was called.
_PLAIN = frozenset(("-o", "-n", "-s", "-v"))


def main() -> int:
    """The command `unionfs`. Returns the exit status."""
    return _run("main")


def mount_helper() -> int:
    """The command `mount.unionfs`. Returns the exit status."""
    return _run("mount_helper")


def _run(command: str) -> int:
    address = starter_address() if _is_plain_mount(sys.argv[1:]) else None
    if address is not None:
        status = _ask(address, command)
        if status is not None:
            return status
    from unionfs import cli

    status = cli.COMMANDS[command](sys.argv[1:])
    if address is not None and status == 0:
        _leave_starter(address)
    return status


def _is_plain_mount(arguments: list[str]) -> bool:
    """Whether this mounts something in the background and does nothing else."""
    words = [word for word in arguments if word.startswith("-")]
    return any(word.startswith("-o") for word in words) and all(
        word in _PLAIN or word.startswith("-o") for word in words
    )


def starter_address() -> str | None:
    """Where a starter that is our like would listen; None where there is no place of our own for it.

    Its like has the same program, byte for byte, and lives in the same namespaces.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    directory = _own_directory()
    if directory is None:
        return None
    return f"{directory}/start-{_sum(identity()):08x}.sock"


def _sum(text: str) -> int:
    """A short name for a text; who meets another text of that name says no."""
    from binascii import crc32

    return crc32(text.encode())


def _own_directory() -> str | None:
    """A directory for sockets that belongs to this user and is closed to all others."""
    uid = os.geteuid()
    places = [os.environ.get(SWITCH, "")]
    if not places[0].startswith("/"):
        places = ["/run"] if uid == 0 else []
        places += [place for place in [os.environ.get("XDG_RUNTIME_DIR")] if place]
    for place in places:
        directory = f"{place}/unionfs"
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        except OSError:
            continue
        status = os.lstat(directory)
        if status.st_uid == uid and status.st_mode & 0o170777 == 0o040700:
            return directory
    return None


def identity() -> str:
    """What a starter and who asks it must have in common, as far as the asker can tell."""
    parts = [sys.executable, str(os.geteuid())]
    package = os.path.dirname(__file__)
    for directory in (package, f"{package}/session"):
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat()
                if entry.is_file():
                    parts.append(f"{entry.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(sorted(parts) + namespaces("self"))


def namespaces(process: str) -> list[str]:
    """The namespaces a process lives in (namespaces(7)). Raises OSError."""
    kinds = sorted(name for name in os.listdir(f"/proc/{process}/ns") if not name.endswith("_for_children"))
    return [os.readlink(f"/proc/{process}/ns/{kind}") for kind in kinds]


def _ask(address: str, command: str) -> int | None:
    """Let a starter do it. Returns the exit status, None when it has done nothing."""
    # What `socket` adds to this takes longer to import than everything here to do.
    import _socket as socket

    descriptors = _own_descriptors()
    if len(descriptors) > _DESCRIPTORS_AT_MOST:
        return None
    starter = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = -1
    try:
        starter.connect(address)
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        message = _message(command, descriptors)
        lent = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (directory, *descriptors))
        sent = starter.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, lent)])
        starter.sendall(message[sent:])
        if starter.recv(1) != TAKEN:
            return None
    except OSError:
        return None  # there is none, or it was just ending
    finally:
        if directory >= 0:
            os.close(directory)
    # From here on the mount is made or refused there, whatever becomes of us.
    try:
        said = starter.recv(1)
    except OSError:
        said = b""
    if not said:
        print(
            f"{os.path.basename(sys.argv[0])}: the process that was to mount it was killed", file=sys.stderr
        )
        return 1
    return said[0]


def _own_descriptors() -> list[int]:
    """All that were inherited, the standard ones too: they are lent for as long as the mount starts."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd < 3:  # one of the standard ones was closed
        fd = os.dup(fd)
    os.close(fd)
    return sorted(
        int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")
    )


def _message(command: str, descriptors: list[int]) -> bytes:
    """Everything that an exec would have handed down; its length before it."""
    umask = os.umask(0o022)
    os.umask(umask)
    environment = [b"%b=%b" % item for item in os.environb.items()]
    parts = [
        command.encode(),
        identity().encode(),
        b"%d" % umask,
        b" ".join(b"%d" % fd for fd in descriptors),
        b"%d" % len(sys.argv),
        *map(os.fsencode, sys.argv),
        *environment,
    ]
    body = b"\0".join(parts)
    return len(body).to_bytes(4, "big") + body


def _leave_starter(address: str) -> None:
    """Start a starter in the background. Whoever mounted waits for nothing of it."""
    if os.path.exists(address):
        return
    if os.fork() == 0:
        try:
            os.setsid()
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            os.closerange(3, 1 << 16)
            # The blanks make room for the names of the mounts that it will serve, as ps(1) shows them.
            os.execv(sys.executable, [sys.executable, "-P", "-m", "unionfs.starter", address, " " * 4000])
        finally:
            os._exit(1)
