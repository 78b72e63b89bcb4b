"""One repository at one endpoint: the verbs of the OCI distribution-spec, each checked for what it gives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx

from runtime.errors import NotFound, RuntimeFailure, Unauthorized
from runtime.images.documents import (
    DOCUMENT_MAX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Document,
    parse_json,
)
from runtime.images.reference import is_digest
from runtime.registry.arriving import Arriving
from runtime.registry.endpoint import Content, Endpoint, read
from runtime.registry.failures import Broken, words

_ACCEPT = ", ".join(MANIFEST_TYPES + INDEX_TYPES)
_PAGES_MAX = 1000
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")


@dataclass(frozen=True)
class Found:
    """A manifest or an index, as the registry sent it."""

    descriptor: Descriptor
    data: bytes

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests, and is none."""
        return self.descriptor.media_type in INDEX_TYPES


class Repository:
    """The repository `path` of the server `endpoint`; `name` is what the user calls it."""

    def __init__(self, endpoint: Endpoint, path: str, name: str, push: bool = False) -> None:
        self.endpoint = endpoint
        self.name = name
        self._path = path
        self._scopes = (f"repository:{path}:pull,push" if push else f"repository:{path}:pull",)

    def _url(self, rest: str) -> str:
        return f"/v2/{self._path}/{rest}"

    # Pulling

    async def manifest(self, reference: str, expected: Descriptor | None = None) -> Found:
        """What the tag or digest `reference` is; `expected` is what an index says of it.

        Raises NotFound when there is none, RuntimeFailure when it is not what it has to be.
        """
        where = f"manifest {self.name}{'@' if is_digest(reference) else ':'}{reference}"
        response, data = await self.endpoint.request(
            "GET", self._url(f"manifests/{reference}"), self._scopes, {"Accept": _ACCEPT}, limit=DOCUMENT_MAX
        )
        if response.status_code == 404:
            raise NotFound(f"{where} not found: {words(response, data)}")
        if response.status_code != 200:
            raise RuntimeFailure(f"cannot get {where}: {words(response, data)}")
        if len(data) > DOCUMENT_MAX:
            raise RuntimeFailure(f"{where} is too large: more than {DOCUMENT_MAX} bytes")
        found = Found(_described(response, data, where), data)
        stated = response.headers.get("docker-content-digest", "")
        for wanted in (reference, stated, expected.digest if expected else ""):
            if is_digest(wanted) and wanted != found.descriptor.digest:
                raise _other(where, found.descriptor.digest)
        if expected and (expected.size, expected.media_type) != (len(data), found.descriptor.media_type):
            raise RuntimeFailure(
                f"{where} has {len(data)} bytes of {found.descriptor.media_type}, "
                f"but its index says {expected.size} of {expected.media_type}"
            )
        return found

    async def tags(self) -> list[str]:
        """All tags of the repository, some at a time ("Listing Tags")."""
        found: list[str] = []
        path = self._url("tags/list")
        for _ in range(_PAGES_MAX):
            response, data = await self.endpoint.request("GET", path, self._scopes, limit=DOCUMENT_MAX)
            if response.status_code == 404:
                raise NotFound(f"{self.name} not found: {words(response, data)}")
            if response.status_code != 200:
                raise RuntimeFailure(f"cannot list the tags of {self.name}: {words(response, data)}")
            where = f"the tags of {self.name}"
            found += Document(parse_json(data, where), where).strings("tags") or ()
            following = response.links.get("next")
            if following is None:
                break
            path = str(response.url.join(following.get("url", "")))
        return found

    async def document(self, descriptor: Descriptor) -> bytes:
        """A blob that is small: a config."""
        where = f"blob {descriptor.digest[:19]}"
        if descriptor.size > DOCUMENT_MAX:
            raise RuntimeFailure(f"{where} is too large: {descriptor.size} bytes of {descriptor.media_type}")
        response, data = await self.endpoint.request(
            "GET", self._url(f"blobs/{descriptor.digest}"), self._scopes, limit=DOCUMENT_MAX
        )
        self._check_blob(response, data if response.status_code != 200 else b"", where)
        digest = _digest(data)
        if digest != descriptor.digest:
            raise _other(where, digest)
        if len(data) != descriptor.size:
            raise RuntimeFailure(f"{where} has {len(data)} bytes instead of {descriptor.size}")
        return data

    async def blob(self, arriving: Arriving, told: Callable[[], None]) -> None:
        """Get a blob; after a broken connection from where it broke. `told` is called for each piece.

        Raises RuntimeFailure when it cannot be had, or is not what it has to be.
        """
        tried = 0
        while True:
            tried += 1
            before = arriving.size
            try:
                await self._rest_of(arriving, told)
            except Broken as failure:
                if arriving.size > before:
                    tried = 1  # it does go on
                await self.endpoint.patience.pause(tried, failure)
            else:
                return

    async def _rest_of(self, arriving: Arriving, told: Callable[[], None]) -> None:
        descriptor, begin = arriving.descriptor, arriving.size
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        if begin == descriptor.size:
            return
        url = self._url(f"blobs/{descriptor.digest}")
        async with self.endpoint.stream("GET", url, self._scopes, headers) as response:
            skip = begin
            if response.status_code == 206:
                match = _RANGE.fullmatch(response.headers.get("content-range", ""))
                if match is None or int(match[1]) != begin:
                    raise RuntimeFailure(f"{self.endpoint.name} gives another range of {arriving.where}")
                skip = 0
            elif response.status_code != 200:
                self._check_blob(response, await read(response), arriving.where)
            async for data in response.aiter_raw():
                # A server that knows no ranges sends all of it again.
                skipped = min(skip, len(data))
                skip -= skipped
                arriving.write(data[skipped:])
                told()
        if arriving.size < descriptor.size and "content-length" not in response.headers:
            raise Broken(f"the connection to {self.endpoint.name} broke")

    def _check_blob(self, response: httpx.Response, body: bytes, where: str) -> None:
        if response.status_code == 404:
            raise RuntimeFailure(f"{where} of {self.name} is not there: {words(response, body)}")
        if response.status_code != 200:
            raise RuntimeFailure(f"cannot get {where} of {self.name}: {words(response, body)}")

    # Pushing

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        response, body = await self.endpoint.request("HEAD", self._url(f"blobs/{digest}"), self._scopes)
        if response.status_code not in (200, 404):
            raise RuntimeFailure(f"cannot push to {self.name}: {words(response, body)}")
        return response.status_code == 200

    async def mount(self, digest: str, source: str) -> bool:
        """Have a blob of the repository `source` of the same registry; gives whether that was done."""
        scopes = (*self._scopes, f"repository:{source}:pull")
        url = self._url(f"blobs/uploads/?mount={digest}&from={source}")
        try:
            response, _ = await self.endpoint.request("POST", url, scopes)
        except Unauthorized:  # to read the other one
            return False
        if response.status_code == 202:  # an upload was begun in its place
            with suppress(RuntimeFailure):
                await self.endpoint.request("DELETE", self._location(response), self._scopes)
        return response.status_code == 201

    async def upload(self, digest: str, size: int, content: Content) -> None:
        """Send a blob of `size` bytes, in one piece; after a broken connection once more.

        Raises RuntimeFailure when the registry does not take it.
        """
        tried = 0
        while True:
            tried += 1
            try:
                await self._send(digest, size, content)
            except Broken as failure:
                await self.endpoint.patience.pause(tried, failure)
            else:
                return

    async def _send(self, digest: str, size: int, content: Content) -> None:
        response, body = await self.endpoint.request("POST", self._url("blobs/uploads/"), self._scopes)
        if response.status_code != 202:
            raise RuntimeFailure(f"cannot push to {self.name}: {words(response, body)}")
        target = httpx.URL(self._location(response)).copy_merge_params({"digest": digest})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        async with self.endpoint.stream("PUT", str(target), self._scopes, headers, content) as response:
            if response.status_code != 201:
                said = words(response, await read(response))
                raise RuntimeFailure(f"{self.name} does not take blob {digest[:19]}: {said}")

    def _location(self, response: httpx.Response) -> str:
        location: str = response.headers.get("location", "")
        if not location:
            raise RuntimeFailure(f"{self.endpoint.name} begins an upload, but does not say where")
        return location

    async def put_manifest(self, reference: str, media_type: str, data: bytes) -> str:
        """Give the repository a manifest under a tag or digest; gives its digest."""

        async def content() -> AsyncIterator[bytes]:
            yield data

        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        url = self._url(f"manifests/{reference}")
        response, body = await self.endpoint.request("PUT", url, self._scopes, headers, content)
        if response.status_code != 201:
            raise RuntimeFailure(f"{self.name} does not take the manifest: {words(response, body)}")
        return _digest(data)


def _other(where: str, digest: str) -> RuntimeFailure:
    return RuntimeFailure(f"{where} is not what was asked for: its digest is {digest}")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(response: httpx.Response, data: bytes, where: str) -> Descriptor:
    """What came: by the header, and by its own word, which must be the same (manifest.md, `mediaType`)."""
    said = response.headers.get("content-type", "").partition(";")[0].strip()
    if said.startswith(_SCHEMA_1):
        raise RuntimeFailure(f"{where} is of docker's schema 1, which is obsolete: push it again")
    if said in ("application/json", "text/plain", "application/octet-stream", ""):
        said = Document(parse_json(data, where), where).string("mediaType", "")
    if said not in MANIFEST_TYPES + INDEX_TYPES:
        raise RuntimeFailure(f"{where} is no image but {said or 'of no type'}")
    own = Document(parse_json(data, where), where).string("mediaType", said)
    if own != said:
        raise RuntimeFailure(f"{where} is sent as {said} but says it is {own}")
    return Descriptor(said, _digest(data), len(data), {}, None)
