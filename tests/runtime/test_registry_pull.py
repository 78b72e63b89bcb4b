"""Pulling: what comes from a real registry, over connections and from servers that are not to be trusted."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from image_builder import (
    COMPRESSIONS,
    config,
    digest,
    directory,
    file,
    oci_files,
    tar,
    whiteout,
    write_layout,
)
from registry_server import DOCKER, OCI, Proxy, Registry
from unionctl_runner import Unionctl, eventually

from runtime.errors import NotFound, RuntimeFailure
from runtime.images.documents import DOCUMENT_MAX
from runtime.images.platforms import Platform, parse_platform
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.client import Client, anonymous
from runtime.registry.endpoint import Patience
from runtime.registry.pull import Pulled, pull
from runtime.registry.settings import Host, Settings
from runtime.root import Root

LARGE = random.Random(1).randbytes(3 << 20)
LOWER = tar(directory("etc"), file("etc/a", b"a"), file("etc/large", LARGE), directory("tmp", mode=0o1777))
UPPER = tar(directory("etc"), whiteout("etc/a"), file("etc/c", b"c" * 5000), file("tmp/x", b"x"))
TOP = tar(directory("opt"), file("opt/d", b"d"))
LAYERS = [LOWER, UPPER, TOP]

QUICK = Patience(tries=4, first=0.01, silence=20)


class Kept:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.moved: set[str] = set()

    def say(self, text: str, part: str = "") -> None:
        self.lines.append(f"{part}: {text}" if part else text)

    def advance(self, text: str, part: str, current: int, total: int) -> None:
        assert 0 < current <= total
        self.moved.add(text)


class Puller:
    """Pulls into a store of its own."""

    def __init__(self, root: Root, **hosts: Host) -> None:
        self.root = root
        self.store = ImageStore(root)
        self.report = Kept()
        self.hosts: dict[str, Host] = {}

    def __call__(self, name: str, platform: Platform | None = None) -> Pulled:
        client = Client(Settings(self.hosts), anonymous, QUICK)
        self.report = Kept()
        return pull(self.store, parse(name), client, self.report, platform)

    def nothing_there(self) -> None:
        """Fails when a pull that failed left something."""
        assert self.store.images() == []
        left = [path for place in ("images/blobs/sha256", "layers/sha256", "tmp") for path in self._in(place)]
        assert left == []

    def _in(self, place: str) -> list[Path]:
        return [path for path in (self.root.path / place).glob("*") if path.name != "lock"]


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(Root(tmp_path / "root"))


def check_tree(pulled: Pulled) -> None:
    lower, upper, top = pulled.image.layers
    assert (lower.path / "etc/large").read_bytes() == LARGE
    assert (upper.path / "etc/c").read_bytes() == b"c" * 5000
    assert (upper.path / "tmp").stat().st_mode & 0o7777 == 0o1777  # as the layer below has it
    assert (top.path / "opt/d").read_bytes() == b"d"
    assert pulled.image.id == digest(config(LAYERS))


# What comes


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_image_is_pulled(puller: Puller, registry: Registry, compression: str) -> None:
    described = registry.put_image("some/app", "1", LAYERS, compression)
    pulled = puller(f"{registry.host}/some/app:1")
    check_tree(pulled)
    assert pulled.digest == described["digest"] and pulled.newer
    assert puller.store.resolve(f"{registry.host}/some/app:1") == pulled.image
    assert puller.store.resolve(f"{registry.host}/some/app@{described['digest']}") == pulled.image
    assert puller.report.lines[0] == "1: Pulling from some/app"
    assert sum(line.endswith(": Pull complete") for line in puller.report.lines) == 3
    assert puller.report.lines[-2:] == [
        f"Digest: {described['digest']}",
        f"Status: Downloaded newer image for {registry.host}/some/app:1",
    ]
    assert "Downloading" in puller.report.moved


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_skopeo_pushes_is_pulled(puller: Puller, registry: Registry, tmp_path: Path, form: str) -> None:
    layout = write_layout(tmp_path / "layout", oci_files(LAYERS))
    name = f"{registry.host}/app:1"
    skopeo = ["skopeo", "copy", "-q", f"--format={form}", "--dest-tls-verify=false"]
    subprocess.run([*skopeo, f"oci:{layout}:test:1", f"docker://{name}"], check=True)
    pulled = puller(name)
    assert pulled.image.manifests[0].media_type.startswith(OCI if form == "oci" else DOCKER)
    assert (pulled.image.layers[0].path / "etc/large").read_bytes() == LARGE


def test_our_layout_is_whole_for_others(puller: Puller, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/app:1"
    registry.put_image("app", "1", LAYERS)
    puller(name)
    copied = f"dir:{tmp_path / 'copied'}"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{puller.root.images}:{name}", copied], check=True)


def test_a_pull_by_digest_gives_no_tag(puller: Puller, registry: Registry) -> None:
    described = registry.put_image("app", "", LAYERS)
    name = f"{registry.host}/app@{described['digest']}"
    pulled = puller(name)
    assert [known.familiar for known in pulled.image.names] == [name]
    assert puller.store.resolve(name) == pulled.image
    with pytest.raises(NotFound):
        puller.store.resolve(f"{registry.host}/app")
    assert puller.store.remove(name)[-1].startswith("Deleted")
    assert puller.store.images() == []


def put_index(registry: Registry, *platforms: str) -> tuple[str, dict[str, str]]:
    """An index under the tag `many`: its digest, and the ID of the image of each platform."""
    ids, entries = {}, []
    for text in platforms:
        platform = parse_platform(text)
        changes = {"architecture": platform.architecture, "variant": platform.variant}
        described = registry.put_image("app", "", [LOWER], **changes)
        ids[text] = digest(config([LOWER], **changes))
        entries.append(described | {"platform": platform.to_json()})
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}
    return registry.put_manifest("app", "many", index)["digest"], ids


def test_of_an_index_the_platform_is_chosen(puller: Puller, registry: Registry) -> None:
    platforms = ("linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7")
    index_digest, ids = put_index(registry, *platforms)
    name = f"{registry.host}/app:many"
    for text in platforms:
        pulled = puller(name, parse_platform(text))
        assert pulled.image.id == ids[text]
        assert pulled.digest == index_digest
        assert [known.familiar for known in pulled.image.digests] == [f"{registry.host}/app@{index_digest}"]
        assert not puller(name, parse_platform(text)).newer
    assert (
        puller(f"{registry.host}/app@{index_digest}", parse_platform("arm64")).image.id
        == ids["linux/arm64/v8"]
    )
    with pytest.raises(RuntimeFailure, match=r"nothing for linux/s390x, only for linux/amd64, linux/arm/v6"):
        puller(name, parse_platform("s390x"))


def test_another_platform_than_was_asked_for_is_said(puller: Puller, registry: Registry) -> None:
    registry.put_image("app", "1", [TOP], architecture="s390x")
    puller(f"{registry.host}/app:1")
    assert any("WARNING" in line and "linux/s390x" in line for line in puller.report.lines)


# What need not come


def test_what_is_here_is_not_asked_for(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", [LOWER, UPPER])
    puller(f"{proxy.host}/app:1")
    proxy.asked.clear()
    again = puller(f"{proxy.host}/app:1")
    assert not again.newer and puller.report.lines[-1].startswith("Status: Image is up to date")
    assert proxy.paths("GET", "/blobs/") == []
    registry.put_image("app", "2", LAYERS)
    check_tree(puller(f"{proxy.host}/app:2"))
    assert len(proxy.paths("GET", "/blobs/")) == 2  # the new layer and the config
    assert sum(line.endswith(": Already exists") for line in puller.report.lines) == 2


def test_a_repeated_layer_comes_once(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", [TOP, LOWER, TOP, UPPER, UPPER])
    pulled = puller(f"{proxy.host}/app:1")
    assert len(pulled.image.layers) == 5 and len(pulled.image.trees) == 4
    assert len(proxy.paths("GET", "/blobs/")) == 4


def test_a_blob_that_is_here_is_unpacked_over_other_layers(puller: Puller, registry: Registry) -> None:
    """UPPER says nothing of /tmp, so its tree cannot be shared; its bytes can."""
    registry.put_image("app", "1", [LOWER, UPPER])
    puller(f"{registry.host}/app:1")
    other = tar(directory("etc"), directory("tmp", mode=0o700))
    registry.put_image("app", "2", [other, UPPER, TOP])
    pulled = puller(f"{registry.host}/app:2")
    assert (pulled.image.layers[1].path / "tmp").stat().st_mode & 0o7777 == 0o700


# Connections


@pytest.mark.parametrize("no_ranges", [False, True])
def test_a_broken_connection_is_resumed(
    puller: Puller, proxy: Proxy, registry: Registry, no_ranges: bool
) -> None:
    registry.put_image("app", "1", LAYERS)
    proxy.faults.break_after, proxy.faults.breaks, proxy.faults.no_ranges = 1_000_000, 2, no_ranges
    check_tree(puller(f"{proxy.host}/app:1"))
    ranges = [asked.headers["range"] for asked in proxy.asked if "range" in asked.headers]
    assert ranges and ranges[0] == "bytes=1000000-"


def test_a_connection_that_always_breaks_is_given_up(
    puller: Puller, proxy: Proxy, registry: Registry
) -> None:
    registry.put_image("app", "1", LAYERS)
    proxy.faults.break_after, proxy.faults.breaks = 0, 1000
    with pytest.raises(RuntimeFailure, match="broke"):
        puller(f"{proxy.host}/app:1")
    puller.nothing_there()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(
    puller: Puller, proxy: Proxy, registry: Registry, status: int
) -> None:
    registry.put_image("app", "1", LAYERS)
    proxy.faults.failing, proxy.faults.fail_status = 3, status
    check_tree(puller(f"{proxy.host}/app:1"))
    proxy.faults.failing = 100
    with pytest.raises(RuntimeFailure, match=str(status)):
        puller(f"{proxy.host}/app:1")


def test_a_slow_server(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", LAYERS)
    proxy.faults.pause, proxy.faults.piece = 0.01, 100_000
    check_tree(puller(f"{proxy.host}/app:1"))


def test_blobs_elsewhere_are_followed_without_telling_who_we_are(
    puller: Puller, proxy: Proxy, registry: Registry
) -> None:
    registry.put_image("app", "1", LAYERS)
    elsewhere = Proxy(registry)
    try:
        proxy.faults.bearer = True
        proxy.faults.redirect = f"http://{elsewhere.host}"
        client = Client(Settings({}), lambda domain: _alice(), QUICK)
        check_tree(pull(puller.store, parse(f"{proxy.host}/app:1"), client, puller.report))
        assert elsewhere.paths("GET", "/blobs/sha256:")
        assert not any("authorization" in asked.headers for asked in elsewhere.asked)
        assert all("authorization" in asked.headers for asked in proxy.asked if "/app/" in asked.path)
    finally:
        elsewhere.close()


def _alice() -> Any:
    from registry_server import PASSWORD, USER

    from runtime.registry.credentials import Credentials

    return Credentials(USER, PASSWORD)


def test_a_mirror_is_asked_first(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", LAYERS)
    puller.hosts[registry.host] = Host(registry.host, insecure=True, mirrors=(proxy.host,))
    puller.hosts[proxy.host] = Host(proxy.host, insecure=True)
    check_tree(puller(f"{registry.host}/app:1"))
    assert len(proxy.paths("GET", "/blobs/")) == 4


def test_a_mirror_that_lies_is_passed_over(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", LAYERS)
    proxy.faults.corrupt = True
    puller.hosts[registry.host] = Host(registry.host, insecure=True, mirrors=("127.0.0.1:1", proxy.host))
    check_tree(puller(f"{registry.host}/app:1"))
    said = [line for line in puller.report.lines if line.startswith("mirror ")]
    assert len(said) == 2 and "127.0.0.1:1" in said[0] and "its digest is" in said[1]


# Lies


def test_a_manifest_that_lies_about_a_blob_that_is_here(
    puller: Puller, proxy: Proxy, registry: Registry
) -> None:
    registry.put_image("app", "1", [TOP], "")
    puller(f"{proxy.host}/app:1")
    wrong = json.dumps(manifest(layers=[LAYER | {"size": LAYER["size"] + 1}])).encode()
    proxy.faults.answers["/manifests/lie"] = (200, JSON, wrong)
    with pytest.raises(RuntimeFailure, match=f"has {LAYER['size']} bytes, not {LAYER['size'] + 1}"):
        puller(f"{proxy.host}/app:lie")


def test_a_blob_with_another_byte_is_refused(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", LAYERS, "")
    proxy.faults.corrupt = True
    with pytest.raises(RuntimeFailure, match=r"its digest is sha256:|not a tar|not what the config says"):
        puller(f"{proxy.host}/app:1")
    puller.nothing_there()


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest of one layer that is nowhere."""

    def described(data: bytes, kind: str) -> dict[str, Any]:
        return {"mediaType": f"{OCI}.{kind}", "digest": digest(data), "size": len(data)}

    return {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": described(config([TOP]), "config.v1+json"),
        "layers": [described(TOP, "layer.v1.tar")],
        **changes,
    }


LAYER: dict[str, Any] = manifest()["layers"][0]
JSON = {"Content-Type": f"{OCI}.manifest.v1+json"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>"), "is no image but text/html"),
        ((200, {}, b"<html>"), "not valid JSON"),
        ((200, JSON, b"x" * (DOCUMENT_MAX + 1)), "too large"),
        ((200, JSON, b"[]"), "not a JSON object"),
        ((200, JSON, b"\xff\xfe"), "not valid JSON"),
        ((200, JSON, b"[" * 100_000), "not valid JSON"),
        ((200, JSON, json.dumps(manifest(mediaType=f"{OCI}.index.v1+json")).encode()), "says it is"),
        ((200, JSON, json.dumps(manifest(layers="x")).encode()), "layers is not a list"),
        ((200, JSON, json.dumps(manifest(layers=[])).encode()), "0 layers"),
        ((200, JSON, json.dumps(manifest(layers=[LAYER, LAYER])).encode()), "2 layers"),
        ((200, JSON, json.dumps(manifest(layers=[LAYER | {"size": -1}])).encode()), "size is not a size"),
        ((200, JSON, json.dumps(manifest(layers=[LAYER | {"size": 1e3}])).encode()), "size is not a size"),
        ((200, JSON, json.dumps(manifest(layers=[LAYER | {"size": 5}])).encode()), "more than the 5 bytes"),
        (
            (200, JSON, json.dumps(manifest(layers=[LAYER | {"size": 1 << 60}])).encode()),
            "instead of|ended|broke",
        ),
        (
            (200, JSON, json.dumps(manifest(layers=[LAYER | {"digest": "sha256:../x"}])).encode()),
            "not a sha256",
        ),
        ((200, JSON, json.dumps(manifest(layers=[LAYER | {"mediaType": "x/y"}])).encode()), "type x/y"),
        ((200, JSON, json.dumps(manifest(config=LAYER)).encode()), "not of a container image"),
        ((200, JSON, json.dumps(manifest(config=None)).encode()), "digest is not a string"),
        (
            (200, JSON | {"Docker-Content-Digest": digest(b"")}, json.dumps(manifest()).encode()),
            "its digest is",
        ),
        ((404, {}, b"not here"), "not found: 404"),
        (
            (404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x\\u001b[2Jy"}]}'),
            r"not found: x \[2Jy$",
        ),
        ((404, {}, b'{"errors":[3]}'), "not found: 404"),
        ((418, {}, b""), "418"),
        ((301, {"Location": "/v2/app/manifests/1"}, b""), "in a circle"),
        ((301, {"Location": "http://[::1"}, b""), "broke|none|circle"),
        (
            (200, {"Content-Type": f"{DOCKER}.distribution.manifest.v1+prettyjws"}, b"{}"),
            "schema 1",
        ),
        (
            (200, {"Content-Type": f"{OCI}.index.v1+json"}, b'{"manifests":[]}'),
            "only for nothing",
        ),
    ],
)
def test_a_hostile_manifest_is_refused_in_one_line(
    puller: Puller, proxy: Proxy, registry: Registry, answer: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    registry.put_image("app", "real", [TOP], "")  # so that the blobs are there
    proxy.faults.answers["/manifests/"] = answer
    with pytest.raises(RuntimeFailure, match=reason) as failure:
        puller(f"{proxy.host}/app:1")
    assert "\n" not in failure.value.message and len(failure.value.message) < 500
    puller.nothing_there()


def test_an_index_that_lies_about_its_manifests(puller: Puller, proxy: Proxy, registry: Registry) -> None:
    entry = registry.put_image("app", "1", [TOP])
    for change, reason in (
        ({"size": 7}, "its index says 7"),
        ({"mediaType": f"{DOCKER}.distribution.manifest.v2+json"}, "its index says"),
    ):
        index = {"mediaType": f"{OCI}.index.v1+json", "manifests": [entry | change]}
        proxy.faults.answers["/manifests/lie"] = (
            200,
            {"Content-Type": f"{OCI}.index.v1+json"},
            json.dumps(index).encode(),
        )
        with pytest.raises(RuntimeFailure, match=reason):
            puller(f"{proxy.host}/app:lie")
        puller.nothing_there()


def test_what_is_no_registry_is_said(puller: Puller, proxy: Proxy) -> None:
    proxy.faults.answers["/v2/"] = (404, {"Content-Type": "text/html"}, b"<html>")
    with pytest.raises(RuntimeFailure, match="is not a registry: /v2/ answers 404"):
        puller(f"{proxy.host}/app:1")
    with pytest.raises(RuntimeFailure, match=r"cannot connect to 127.0.0.1:1: Connection refused"):
        puller("127.0.0.1:1/app:1")
    with pytest.raises(RuntimeFailure, match=r"cannot find nowhere.invalid"):
        puller("nowhere.invalid/app:1")


# Ends


def stuck(proxy: Proxy, unionctl: Unionctl) -> subprocess.Popen[bytes]:
    """A pull that has bytes, and waits for more."""
    proxy.faults.pause, proxy.faults.piece = 0.2, 50_000
    process = unionctl.popen("pull", f"{proxy.host}/app:1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    workspaces = unionctl.root / "tmp"
    assert eventually(lambda: any(path.stat().st_size for path in workspaces.glob("*/staging/*")), 60)
    return process


@pytest.fixture
def bare(tmp_path: Path) -> Unionctl:
    return Unionctl(tmp_path / "state")


def test_a_pull_that_is_interrupted_ends_and_leaves_nothing(
    bare: Unionctl, proxy: Proxy, registry: Registry
) -> None:
    registry.put_image("app", "1", LAYERS)
    process = stuck(proxy, bare)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert bare.out("images", "-q") == ""
    assert [path.name for path in (bare.root / "tmp").iterdir()] == ["lock"]


def test_a_pull_that_is_killed_leaves_a_whole_store(bare: Unionctl, proxy: Proxy, registry: Registry) -> None:
    registry.put_image("app", "1", LAYERS)
    process = stuck(proxy, bare)
    process.kill()
    process.communicate(timeout=60)
    proxy.faults.pause = 0
    assert bare.out("images", "-q") == ""
    assert bare.out("pull", "-q", f"{proxy.host}/app:1") == f"{proxy.host}/app:1"
    assert [path.name for path in (bare.root / "tmp").iterdir()] == ["lock"]
    assert len(bare.out("images", "-q").splitlines()) == 1


def test_two_pulls_at_once(bare: Unionctl, registry: Registry) -> None:
    registry.put_image("app", "1", LAYERS)
    registry.put_image("app", "2", [LOWER, UPPER])
    names = [f"{registry.host}/app:{tag}" for tag in ("1", "2", "1")]
    processes = [bare.popen("pull", "-q", name, stdout=subprocess.PIPE) for name in names]
    for name, process in zip(names, processes, strict=True):
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.decode()) == (0, f"{name}\n")
    assert len(bare.out("images", "-q").splitlines()) == 2


# Commands


def test_run_pulls_what_is_missing(unionctl: Unionctl, registry: Registry) -> None:
    from unionctl_runner import busybox_layers

    name = f"{registry.host}/box"
    registry.put_image("box", "latest", busybox_layers(), config={"Env": ["PATH=/bin"], "Cmd": ["true"]})
    assert "No such image" in unionctl.err("run", "--pull", "never", name, code=125)
    result = unionctl("run", "--rm", name, "echo", "hello")
    assert result.stdout == b"hello\n"
    assert f"Unable to find image '{name}:latest' locally\n" in result.stderr.decode()
    assert "Status: Downloaded newer image" in result.stderr.decode()
    assert unionctl("run", "--rm", name, "echo", "again").stderr == b""
    registry.put_image("box", "latest", busybox_layers(), config={"Env": ["PATH=/bin", "A=new"]})
    assert unionctl.out("run", "--rm", "--pull", "always", "-q", name, "sh", "-c", "echo $A") == "new"
    assert "only for linux/amd64" in unionctl.err(
        "run", "--pull", "never", "--platform", "arm64", name, code=125
    )


def test_pull_speaks_as_docker_does(bare: Unionctl, registry: Registry) -> None:
    described = registry.put_image("app", "latest", [TOP])
    lines = bare.out("pull", f"{registry.host}/app").splitlines()
    part = digest(COMPRESSIONS["+gzip"](TOP))[7:19]
    assert lines == [
        "Using default tag: latest",
        "latest: Pulling from app",
        f"{part}: Pulling fs layer",
        f"{part}: Download complete",
        f"{part}: Pull complete",
        f"Digest: {described['digest']}",
        f"Status: Downloaded newer image for {registry.host}/app:latest",
        f"{registry.host}/app:latest",
    ]
    assert described["digest"] in bare.out("images", "--digests")
    assert bare.err("pull", f"{registry.host}/gone:1", code=1).startswith(
        f"unionctl: manifest {registry.host}/gone:1 not found: "
    )


def test_every_tag(bare: Unionctl, proxy: Proxy, registry: Registry) -> None:
    for tag in ("1", "2", "3"):
        registry.put_image("tags", tag, [TOP])
    names = [f"{proxy.host}/tags:{tag}" for tag in ("1", "2", "3")]
    assert bare.out("pull", "-q", "-a", f"{proxy.host}/tags").splitlines() == names
    # A registry may give them page by page.
    link = {"Link": '</v2/tags/tags/list?last=1>; rel="next"'}
    proxy.faults.answers["last=1"] = (200, {}, b'{"tags":["2"]}')
    proxy.faults.answers["/tags/list"] = (200, link, b'{"tags":["1"]}')
    assert bare.out("pull", "-q", "-a", f"{proxy.host}/tags").splitlines() == names[:2]
    for tags, reason in ((b'{"tags":3}', "not a list"), (b'{"tags":["a b"]}', "invalid reference")):
        proxy.faults.answers["/tags/list"] = (200, {}, tags)
        assert reason in bare.err("pull", "-a", f"{proxy.host}/tags", code=1)
    assert "can't be used" in bare.err("pull", "-a", f"{proxy.host}/tags:1", code=1)


def test_a_proxy_that_is_none_is_said(bare: Unionctl) -> None:
    bare.environment["HTTPS_PROXY"] = "socks9://x"
    assert "cannot use the proxy" in bare.err("pull", "registry.invalid/x", code=1)


def test_bars_on_a_terminal(bare: Unionctl, registry: Registry) -> None:
    registry.put_image("app", "latest", LAYERS)
    script = f"{' '.join(map(_quoted, bare.command))} pull {registry.host}/app"
    result = subprocess.run(
        ["script", "-qec", script, "/dev/null"],
        capture_output=True,
        env={**bare.environment, "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert b"Pull complete" in result.stdout and b"\x1b[" in result.stdout
    assert b"Status: Downloaded newer image" in result.stdout


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)
