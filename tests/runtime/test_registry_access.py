"""Who may: passwords, tokens, helpers, docker's config.json; and TLS."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_builder import directory, file, tar
from registry_server import PASSWORD, USER, Certificates, Proxy, Registry, certificates
from unionctl_runner import Unionctl

from runtime.errors import RuntimeFailure, Unauthorized
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.client import Client
from runtime.registry.credentials import ANONYMOUS, DEFAULT_KEY, Credentials, CredentialStore
from runtime.registry.endpoint import Patience
from runtime.registry.login import server_name
from runtime.registry.pull import pull
from runtime.registry.report import Quiet
from runtime.registry.settings import Host, Settings, is_loopback
from runtime.root import Root

ALICE = Credentials(USER, PASSWORD)
LAYERS = [tar(directory("etc"), file("etc/a", b"a"))]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry behind a password."""
    server = Registry(tmp_path_factory.mktemp("locked") / "registry", auth=True)
    server.put_image("app", "1", LAYERS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates") / "tls")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certified: Certificates) -> Iterator[Registry]:
    """A registry behind TLS and a password."""
    server = Registry(tmp_path_factory.mktemp("secure") / "registry", auth=True, tls=certified)
    server.put_image("app", "1", LAYERS)
    yield server
    server.close()


@pytest.fixture
def user(tmp_path: Path) -> Unionctl:
    """unionctl of a user with files of the test's own."""
    unionctl = Unionctl(tmp_path / "state")
    unionctl.environment |= {
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "UNIONCTL_REGISTRIES": str(tmp_path / "registries.json"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    return unionctl


def attempt(
    tmp_path: Path, name: str, credentials: Credentials, hosts: dict[str, Host] | None = None
) -> None:
    client = Client(
        Settings(hosts or {}), lambda domain: credentials, Patience(tries=2, first=0.01, silence=20)
    )
    pull(ImageStore(Root(tmp_path / "root")), parse(name), client, Quiet())


# Passwords


def test_a_password(tmp_path: Path, locked: Registry) -> None:
    name = f"{locked.host}/app:1"
    with pytest.raises(
        Unauthorized, match=rf"unauthorized: .*\(not logged in: unionctl login {locked.host}\)"
    ):
        attempt(tmp_path, name, ANONYMOUS)
    with pytest.raises(Unauthorized, match=rf"\(logged in to {locked.host} as mallory\)"):
        attempt(tmp_path, name, Credentials("mallory", "guess"))
    attempt(tmp_path, name, ALICE)


def test_login_pull_logout(user: Unionctl, tmp_path: Path, locked: Registry) -> None:
    config = tmp_path / "docker" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"auths": {"other.example": {"auth": "eDp5"}}, "HttpHeaders": {"A": "b"}}))
    config.chmod(0o644)
    name = f"{locked.host}/app:1"
    assert "unionctl login" in user.err("pull", name, code=1)
    words = ("login", "-u", USER, "--password-stdin", locked.host)
    before = config.read_bytes()
    assert user.err(*words, stdin=b"wrong", code=1).startswith("unionctl: unauthorized: ")
    assert config.read_bytes() == before
    result = user(*words, stdin=f"{PASSWORD}\n".encode())
    assert result.stdout == b"Login Succeeded\n" and b"unencrypted" in result.stderr
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    kept = json.loads(config.read_text())
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert kept["auths"] == {"other.example": {"auth": "eDp5"}, locked.host: {"auth": pair}}
    assert kept["HttpHeaders"] == {"A": "b"}
    assert [path.name for path in config.parent.iterdir()] == ["config.json"]
    assert user.out("pull", "-q", name) == name
    assert user.out("login", locked.host).splitlines()[-1] == "Login Succeeded"  # with what is kept
    assert user.out("logout", locked.host) == f"Removing login credentials for {locked.host}"
    assert user.out("logout", locked.host) == f"Not logged in to {locked.host}"
    assert list(json.loads(config.read_text())["auths"]) == ["other.example"]
    assert "not a terminal" in user.err("login", locked.host, code=1)


def test_slips_of_login(user: Unionctl) -> None:
    assert "mutually exclusive" in user.err("login", "-u", "x", "-p", "y", "--password-stdin", "h:1", code=1)
    assert "must provide --username" in user.err("login", "--password-stdin", "h:1", code=1)
    assert "invalid registry 'host'" in user.err("login", "-u", "x", "-p", "y", "host", code=1)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("", "docker.io"),
        ("docker.io", "docker.io"),
        (DEFAULT_KEY, "docker.io"),
        ("localhost", "localhost"),
        ("https://host.example/v1/", "host.example"),
        ("host:5000", "host:5000"),
    ],
)
def test_the_name_of_a_server(text: str, domain: str) -> None:
    assert server_name(text) == domain


# Tokens


def test_a_token(tmp_path: Path, registry: Registry, proxy: Proxy) -> None:
    registry.put_image("token/app", "1", LAYERS)
    proxy.faults.bearer = True
    name = f"{proxy.host}/token/app:1"
    with pytest.raises(Unauthorized, match="wrong password"):
        attempt(tmp_path, name, Credentials(USER, "guess"))
    with pytest.raises(Unauthorized, match="not logged in"):
        attempt(tmp_path, name, ANONYMOUS)
    attempt(tmp_path, name, ALICE)
    (asked,) = {path for path in proxy.paths("GET", "/token") if "account" in path and "token%2Fapp" in path}
    assert asked == f"/token?service=test%2C+quoted&account={USER}&scope=repository%3Atoken%2Fapp%3Apull"


def test_a_token_that_ends_is_renewed(tmp_path: Path, registry: Registry, proxy: Proxy) -> None:
    registry.put_image("token/app", "1", LAYERS)
    proxy.faults.bearer, proxy.faults.token_uses = True, 1
    attempt(tmp_path, f"{proxy.host}/token/app:1", ALICE)
    assert len(proxy.tokens) > 1


def test_an_identity_token_is_traded(tmp_path: Path, registry: Registry, proxy: Proxy) -> None:
    registry.put_image("token/app", "1", LAYERS)
    proxy.faults.bearer = True
    attempt(tmp_path, f"{proxy.host}/token/app:1", Credentials(USER, identity_token="refresh"))
    assert proxy.paths("POST", "/token")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ('Bearer realm="http://127.0.0.1:1/token"', "cannot connect|broke"),
        ('Bearer realm="ftp://x/y"', "which is no URL"),
        ("Bearer", "which is no URL"),
        ('Bearer realm="http://[::1"', "which is no URL"),
        ("Negotiate", "unauthorized"),
        ("", "unauthorized"),
        ('Bearer ,,,=,"', "which is no URL"),
    ],
)
def test_a_hostile_challenge(tmp_path: Path, proxy: Proxy, header: str, reason: str) -> None:
    proxy.faults.answers["/v2/"] = (401, {"WWW-Authenticate": header}, b"")
    with pytest.raises(RuntimeFailure, match=reason) as failure:
        attempt(tmp_path, f"{proxy.host}/app:1", ALICE)
    assert "\n" not in failure.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token":3}', b'{"token":"a\\nb"}', b"x" * 100_000])
def test_a_hostile_token(tmp_path: Path, proxy: Proxy, body: bytes) -> None:
    proxy.faults.answers["/v2/"] = (
        401,
        {"WWW-Authenticate": f'Bearer realm="http://{proxy.host}/get"'},
        b"",
    )
    proxy.faults.answers["/get"] = (200, {}, body)
    with pytest.raises(RuntimeFailure, match="the token that"):
        attempt(tmp_path, f"{proxy.host}/app:1", ALICE)


# Where they are kept

HELPER = """#!/bin/sh
read -r said
echo "$1 $said" >> {log}
case "$1" in
    get) [ -e {kept} ] && cat {kept} || {{ echo "credentials not found in native keychain"; exit 1; }} ;;
    store) echo "$said" > {kept} ;;
    erase) rm -f {kept} ;;
esac
"""


def test_a_helper_keeps_them(user: Unionctl, tmp_path: Path, locked: Registry) -> None:
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.write_text(HELPER.format(log=tmp_path / "log", kept=tmp_path / "kept"))
    helper.chmod(0o755)
    (tmp_path / "docker").mkdir()
    config = tmp_path / "docker" / "config.json"
    config.write_text(json.dumps({"credHelpers": {locked.host: "test"}}))
    name = f"{locked.host}/app:1"
    user("pull", name, code=1)
    result = user("login", "-u", USER, "--password-stdin", locked.host, stdin=PASSWORD.encode())
    assert b"unencrypted" not in result.stderr
    assert json.loads((tmp_path / "kept").read_text()) == {
        "ServerURL": locked.host,
        "Username": USER,
        "Secret": PASSWORD,
    }
    assert PASSWORD not in config.read_text()
    assert user.out("pull", "-q", name) == name
    user("logout", locked.host)
    assert not (tmp_path / "kept").exists()
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"erase {locked.host}"


def test_a_helper_that_fails_is_named(user: Unionctl, tmp_path: Path, locked: Registry) -> None:
    (tmp_path / "docker").mkdir()
    config = tmp_path / "docker" / "config.json"
    for store, reason in (
        ("gone", "cannot run the credential helper docker-credential-gone"),
        ("../x", "invalid credential helper '../x'"),
        ("bad", "docker-credential-bad get failed: no luck"),
    ):
        config.write_text(json.dumps({"credsStore": store}))
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "docker-credential-bad").write_text("#!/bin/sh\necho no luck >&2; exit 1\n")
        (tmp_path / "bin" / "docker-credential-bad").chmod(0o755)
        assert reason in user.err("pull", f"{locked.host}/app:1", code=1)


@pytest.mark.parametrize(
    ("auths", "found"),
    [
        ({"host:1": {"auth": "eDp5Onp6"}}, Credentials("x", "y:zz")),
        ({"https://host:1/v1/": {"auth": "eDp5"}}, Credentials("x", "y")),
        ({"http://host:1": {"username": "x", "password": "y"}}, Credentials("x", "y")),
        ({"host:1": {"auth": "eDo=", "identitytoken": "t"}}, Credentials("x", "", "t")),
        ({"host:1": {"registrytoken": "t"}}, Credentials(registry_token="t")),
        ({"host:2": {"auth": "eDp5"}, "host": {"auth": "eDp5"}}, ANONYMOUS),
        ({}, ANONYMOUS),
    ],
)
def test_docker_config_is_read(tmp_path: Path, auths: dict[str, Any], found: Credentials) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": auths}))
    assert CredentialStore(path).get("host:1") == found


def test_the_default_registry_has_its_key(tmp_path: Path) -> None:
    kept = CredentialStore(tmp_path / "new" / "config.json")
    kept.store("docker.io", ALICE)
    assert list(json.loads((tmp_path / "new" / "config.json").read_text())["auths"]) == [DEFAULT_KEY]
    assert kept.get("docker.io") == ALICE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"auths": 3}', "not a JSON object"),
        ('{"auths": {"host:1": 3}}', "not a JSON object"),
        ('{"auths": {"host:1": {"auth": "%%"}}}', "base64"),
        ('{"credHelpers": {"host:1": 3}}', "credHelpers"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(RuntimeFailure, match=reason) as failure:
        CredentialStore(path).get("host:1")
    assert str(path) in failure.value.message


# TLS


def test_a_certificate_must_be_known(tmp_path: Path, secure: Registry, certified: Certificates) -> None:
    name = f"{secure.host}/app:1"

    def host(**changes: Any) -> dict[str, Host]:
        return {secure.host: Host(secure.host, **changes)}

    with pytest.raises(
        RuntimeFailure, match=r"TLS: the certificate of .* is not accepted: unable to get local"
    ):
        attempt(tmp_path, name, ALICE, host())
    other = certificates(tmp_path / "other")
    with pytest.raises(RuntimeFailure, match="is not accepted"):
        attempt(tmp_path, name, ALICE, host(authorities=(other.authority,)))
    with pytest.raises(RuntimeFailure, match="cannot use the certificate in"):
        attempt(tmp_path, name, ALICE, host(authorities=(certified.key,)))
    attempt(tmp_path, name, ALICE, host(authorities=(certified.authority,)))
    attempt(tmp_path, name, ALICE, host(insecure=True))


def test_a_certificate_of_another_name(tmp_path: Path) -> None:
    named = certificates(tmp_path / "named", "other.example")
    server = Registry(tmp_path / "registry", tls=named)
    try:
        hosts = {server.host: Host(server.host, authorities=(named.authority,))}
        with pytest.raises(RuntimeFailure, match="IP address mismatch"):
            attempt(tmp_path, f"{server.host}/app:1", ANONYMOUS, hosts)
    finally:
        server.close()


def test_plain_http_where_tls_is_wanted(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(RuntimeFailure, match="does not speak it"):
        attempt(tmp_path, f"{registry.host}/app:1", ANONYMOUS, {registry.host: Host(registry.host)})


def test_tls_by_configuration_and_by_option(
    user: Unionctl, tmp_path: Path, secure: Registry, certified: Certificates
) -> None:
    name = f"{secure.host}/app:1"
    user(
        "login", "-u", USER, "--password-stdin", secure.host, stdin=PASSWORD.encode()
    )  # loopback is insecure
    assert "is not accepted" in user.err("pull", "--tls-verify=true", name, code=1)
    file = Path(user.environment["UNIONCTL_REGISTRIES"])
    file.write_text(json.dumps({secure.host: {"insecure": False}}))
    assert "is not accepted" in user.err("pull", name, code=1)
    assert user.out("pull", "-q", "--tls-verify=false", name) == name
    file.write_text(json.dumps({secure.host: {"ca": str(certified.authority)}}))
    assert user.out("pull", "-q", name) == name
    assert user.out("push", "-q", "--tls-verify=true", name) == name


# registries.json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"h": 3}', "not a JSON object"),
        ('{"h": {"insecure": "yes"}}', "insecure is not true or false"),
        ('{"h": {"mirror": []}}', "mirror is unknown; there are ca, cert, insecure"),
        ('{"h": {"mirrors": "m"}}', "mirrors is not a list"),
        ('{"h": {"cert": "x"}}', "cert and key go together"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    file = tmp_path / "registries.json"
    file.write_text(text)
    monkeypatch.setenv("UNIONCTL_REGISTRIES", str(file))
    with pytest.raises(RuntimeFailure, match=reason) as failure:
        Settings.read()
    assert str(file) in failure.value.message


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "registries.json"
    file.write_text('{"h": {"insecure": true, "mirrors": ["m:1", "localhost"]}}')
    monkeypatch.setenv("UNIONCTL_REGISTRIES", str(file))
    assert Settings.read().host("h").insecure and not Settings.read(tls_verify=True).host("h").insecure
    assert not Settings.read().host("other").insecure and Settings.read(False).host("other").insecure
    assert [(mirror.name, mirror.insecure) for mirror in Settings.read(True).mirrors("h")] == [
        ("m:1", False),
        ("localhost", True),
    ]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("[::1]", True),
        ("10.0.0.1:5000", False),
        ("localhost.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
