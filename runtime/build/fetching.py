"""What is not on this disk yet: contexts and files by URL, and archives that are to be unpacked."""

from __future__ import annotations

import bz2
import email.utils
import hashlib
import http.client
import lzma
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from runtime.errors import RuntimeFailure
from runtime.images.streams import CHUNK, FOREIGN_MAGICS, DecompressingReader, DiskGuard, Limits, Readable
from runtime.images.unpack import unpack

_TIMEOUT = 60.0  # seconds without a byte
_TAR_MAGIC = (257, b"ustar")
_GIT_PREFIXES = ("git://", "git@", "ssh://", "github.com/")


def is_url(text: str) -> bool:
    """Whether `text` is fetched by HTTP."""
    return text.startswith(("http://", "https://")) and not is_git(text)


def is_git(text: str) -> bool:
    """Whether `text` is a git repository by docker's rules."""
    if text.startswith(_GIT_PREFIXES):
        return True
    return text.startswith(("http://", "https://")) and text.partition("#")[0].rstrip("/").endswith(".git")


def refuse_git(text: str) -> RuntimeFailure:
    """The failure that says what to do in place of it."""
    return RuntimeFailure(
        f"{text} is a git repository, which is not fetched here: clone it, and give the clone's directory"
    )


def url_name(url: str) -> str:
    """The file name that a URL ends in; "" when it ends in none."""
    return os.path.basename(urlsplit(url).path)


def fetch(url: str, path: Path, checksum: str = "") -> None:
    """Download `url` into the new file `path`, of mode 0600 and with the server's time.

    Raises RuntimeFailure when it cannot be had whole, or is not what `checksum` (sha256:…) says.
    """
    disk = DiskGuard(path.parent, url, Limits())
    total = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "unionctl"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, path.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            left = answer.headers.get("Content-Length")
            size = 0
            while data := answer.read(CHUNK):
                disk.take(len(data))
                total.update(data)
                size += len(data)
                file.write(data)
            if left is not None and size != int(left):
                raise RuntimeFailure(f"cannot fetch {url}: it ended after {size} of {left} bytes")
            stamp = answer.headers.get("Last-Modified")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        is_answer = isinstance(error, urllib.error.HTTPError)
        reason = error if is_answer else getattr(error, "reason", None) or error
        raise RuntimeFailure(f"cannot fetch {url}: {reason}") from error
    if checksum and checksum != f"sha256:{total.hexdigest()}":
        raise RuntimeFailure(f"{url} has the digest sha256:{total.hexdigest()}, not {checksum}")
    moment = email.utils.parsedate_to_datetime(stamp).timestamp() if stamp else 0
    os.utime(path, (moment, moment))


def archive_stream(file: BinaryIO, where: str) -> Readable | None:
    """The plain tar in `file`, which may be compressed by gzip, bzip2, xz or zstd; None when it is no tar."""
    plain = _plain(file, where)
    try:
        head = _read(plain, 512)
    except (RuntimeFailure, OSError, EOFError, lzma.LZMAError):
        return None
    place, magic = _TAR_MAGIC
    if head[place : place + len(magic)] != magic and not _is_old_tar(head):
        return None
    file.seek(0)
    return _plain(file, where)


def _plain(file: BinaryIO, where: str) -> Readable:
    magic = file.read(6)
    file.seek(0)
    foreign = next((name for start, name in FOREIGN_MAGICS.items() if magic.startswith(start)), "")
    if foreign == "xz":
        return cast(Readable, lzma.LZMAFile(file))
    if foreign:
        return cast(Readable, bz2.BZ2File(file))
    return DecompressingReader(file, where, Limits())


def _read(stream: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _is_old_tar(head: bytes) -> bool:
    """A tar of before POSIX has no magic; its checksum tells (tar(5))."""
    if len(head) < 512 or not head[0]:
        return False
    try:
        stated = int(head[148:156].rstrip(b"\0 ").lstrip(b" ") or b"x", 8)
    except ValueError:
        return False
    return stated == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def unpack_archive(stream: Readable, directory: Path, where: str) -> None:
    """Unpack the plain tar `stream` into the new `directory`; raises RuntimeFailure for a bad one."""
    directory.mkdir()
    try:
        unpack(stream, directory, where, Limits())
    except (EOFError, lzma.LZMAError, OSError) as error:
        raise RuntimeFailure(f"{where} is damaged or cut short: {error}") from error
