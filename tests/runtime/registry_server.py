"""A real docker-registry on loopback, and a proxy before it that does what networks and liars do."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from image_builder import COMPRESSIONS, config, digest

PATIENCE = 60  # seconds

USER, PASSWORD = "alice", "secret"
#: The password by bcrypt, the only kind that docker-registry reads.
_HTPASSWD = f"{USER}:$2b$04$6MosTv1xicAad7ea2vPAEOUngXSn8JBMj6IKgdvCjF8wb/MF.4Zhu\n"

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


@dataclass(frozen=True)
class Certificates:
    """An authority of the test's own, and what it certified."""

    authority: Path
    certificate: Path
    key: Path


def certificates(directory: Path, host: str = "127.0.0.1") -> Certificates:
    """A new authority, and a certificate of it for `host`."""
    directory.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *curve, "-subj", f"/CN={host}", "-keyout", "server.key", "-out", "server.csr")
    kind = "IP" if host[0].isdigit() else "DNS"
    (directory / "names").write_text(f"subjectAltName={kind}:{host}\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-extfile", "names", "-out", "server.pem"),
    )
    return Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Registry:
    """docker-registry, with `auth` behind a password, with `tls` behind certificates."""

    def __init__(self, directory: Path, auth: bool = False, tls: Certificates | None = None) -> None:
        directory.mkdir()
        self.port = _free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._tls = tls
        self._auth = auth
        http_settings: dict[str, Any] = {"addr": self.host}
        if tls:
            http_settings["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
            "http": http_settings,
        }
        if auth:
            (directory / "htpasswd").write_text(_HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
        file = directory / "registry.yml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(file)], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, "docker-registry does not listen"
                time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; names of headers have _ for -."""
        if self._tls:
            context = ssl._create_unverified_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(self.host, context=context)
        else:
            connection = http.client.HTTPConnection(self.host)
        with contextlib.closing(connection):
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if self._auth:
                pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                sent.setdefault("Authorization", f"Basic {pair}")
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """A manifest that is there."""
        accept = f"{OCI}.manifest.v1+json, {DOCKER}.distribution.manifest.v2+json"
        status, _, body = self.ask("GET", f"/v2/{repository}/manifests/{reference}", Accept=accept)
        assert status in (200, 404), body
        return body if status == 200 else None

    # What is put there, by other means than ours

    def put_blob(self, repository: str, data: bytes, media_type: str) -> dict[str, Any]:
        """Put a blob; gives its descriptor."""
        status, headers, body = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, body
        url = urlsplit(headers["location"])
        status, _, body = self.ask("PUT", f"{url.path}?{url.query}&digest={digest(data)}", data)
        assert status == 201, body
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def put_manifest(self, repository: str, tag: str, value: dict[str, Any]) -> dict[str, Any]:
        """Put a manifest or index; gives its descriptor."""
        data = json.dumps(value).encode()
        kind = value["mediaType"]
        status, _, body = self.ask("PUT", f"/v2/{repository}/manifests/{tag}", data, Content_Type=kind)
        assert status == 201, body
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    def put_image(
        self, repository: str, tag: str, layers: list[bytes], compression: str = "+gzip", **changes: Any
    ) -> dict[str, Any]:
        """Put an OCI image of plain layer tars; gives its manifest's descriptor."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.put_blob(repository, config(layers, **changes), f"{OCI}.config.v1+json"),
            "layers": [
                self.put_blob(
                    repository, COMPRESSIONS[compression](layer), f"{OCI}.layer.v1.tar{compression}"
                )
                for layer in layers
            ],
        }
        return self.put_manifest(repository, tag or digest(json.dumps(manifest).encode()), manifest)


@dataclass
class Asked:
    """A request that came to a proxy."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Faults:
    """What a proxy does to those who ask."""

    #: Blobs break off after so many bytes, that many times.
    break_after: int = 0
    breaks: int = 0
    #: Uploads break off, that many times.
    broken_uploads: int = 0
    #: The next answers are this status, with Retry-After: 0.
    failing: int = 0
    fail_status: int = 503
    #: Ranges are not understood.
    no_ranges: bool = False
    #: A byte of each blob is another one.
    corrupt: bool = False
    #: Seconds between pieces of a blob, and the bytes in a piece.
    pause: float = 0.0
    piece: int = 64 << 10
    #: Paths, by a part of them, that are answered with (status, headers, body).
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    #: Blobs are to be had at this other place.
    redirect: str = ""
    #: Tokens are wanted, and each is good for so many requests.
    bearer: bool = False
    token_uses: int = 1000


class Proxy:
    """A server before `registry` that keeps what it was asked."""

    def __init__(self, registry: Registry) -> None:
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.tokens: dict[str, int] = {}
        self.registry = registry
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def paths(self, method: str, part: str) -> list[str]:
        """The paths that hold `part` and were asked for by `method`."""
        return [asked.path for asked in self.asked if asked.method == method and part in asked.path]


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        self._drained = False
        faults = self.owner.faults
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.asked.append(Asked(self.command, self.path, headers))
        if self.path.startswith("/token"):
            return self._token()
        if faults.failing > 0 and self.path != "/v2/":
            faults.failing -= 1
            return self._answer(faults.fail_status, {"Retry-After": "0"}, b"")
        if faults.bearer and not self._authorized(headers):
            return None
        for part, answer in faults.answers.items():
            if part in self.path:
                return self._answer(*answer)
        if faults.redirect and self.command == "GET" and "/blobs/sha256:" in self.path:
            return self._answer(307, {"Location": faults.redirect + self.path}, b"")
        return self._forward(headers)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._drain()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def _drain(self) -> bytes:
        """The body, once."""
        if self._drained:
            return b""
        self._drained = True
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.close_connection = True
            return b""
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _authorized(self, headers: dict[str, str]) -> bool:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if self.owner.tokens.get(token, 0) > 0:
            self.owner.tokens[token] -= 1
            return True
        realm = f'Bearer realm="http://{self.owner.host}/token",service="test, quoted"'
        self._answer(401, {"WWW-Authenticate": realm}, b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        return False

    def _token(self) -> None:
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        form = parse_qs(self._drain().decode())
        renewed = form.get("refresh_token") == ["refresh"]
        if self.headers.get("Authorization") != f"Basic {pair}" and not renewed:
            body = b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}'
            return self._answer(401, {}, body)
        scopes = ",".join(parse_qs(urlsplit(self.path).query).get("scope", [])) or ",".join(
            form.get("scope", [])
        )
        token = hashlib.sha256(f"{scopes}{len(self.owner.tokens)}".encode()).hexdigest()
        self.owner.tokens[token] = self.owner.faults.token_uses
        return self._answer(200, {}, json.dumps({"token": token}).encode())

    def _forward(self, headers: dict[str, str]) -> None:
        faults = self.owner.faults
        if self.command in ("PUT", "PATCH") and faults.broken_uploads > 0 and "/blobs/uploads/" in self.path:
            faults.broken_uploads -= 1
            self.rfile.read(min(1000, int(headers.get("content-length", "0"))))
            return self._break()
        body = self._drain()
        sent = {
            name: value for name, value in headers.items() if name not in ("connection", "transfer-encoding")
        }
        if faults.no_ranges:
            sent.pop("range", None)
        if faults.bearer:
            sent.pop("authorization", None)
        connection = http.client.HTTPConnection(self.owner.registry.host)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, sent)
            answer = connection.getresponse()
            self.send_response(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date"):
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                is_blob = self.command == "GET" and "/blobs/sha256:" in self.path
                self._pass_on(answer, is_blob)

    def _pass_on(self, answer: http.client.HTTPResponse, is_blob: bool) -> None:
        faults = self.owner.faults
        passed = 0
        with contextlib.suppress(OSError):
            while data := answer.read(faults.piece if is_blob else 64 << 10):
                if is_blob:
                    if faults.corrupt and not passed:
                        data = bytes((data[0] ^ 1,)) + data[1:]
                    if faults.breaks > 0 and passed + len(data) >= faults.break_after:
                        faults.breaks -= 1
                        self.wfile.write(data[: faults.break_after - passed])
                        return self._break()
                    time.sleep(faults.pause)
                self.wfile.write(data)
                passed += len(data)

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
