"""unionctl build: Dockerfiles become images."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerfiles import Builder, ran
from support.layers import Dir, File, HardLink, Symlink
from support.layers import build as make
from unionctl_runner import Unionctl, dead_cgroups, eventually

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unionctl]:
    """One state root for all builds; at the end nothing is left but images."""
    cgroups = dead_cgroups()
    runner = Unionctl(tmp_path_factory.mktemp("build") / "state")
    runner.load()
    yield runner
    runner.end(cgroups)


@pytest.fixture
def builder(shared: Unionctl, tmp_path: Path) -> Builder:
    return Builder(shared, tmp_path / "context")


def test_instructions_that_make_files(builder: Builder) -> None:
    make(builder.context, {"a": "1\n", "d": {"b": "2\n", "e": {"f": "3\n"}}})
    builder(
        "FROM busybox",
        "RUN echo ran >/ran; rm /opt/one; mv /opt /opt2",
        'RUN ["sh", "-c", "echo $0 >/exec"]',
        "COPY a /file",
        "COPY a /dir/",
        "COPY d /tree",
        "COPY d/b a /many/",
        "WORKDIR /work",
        "WORKDIR deep",
        "COPY . .",
        "RUN pwd >/pwd",
    )
    files = "ran exec file dir/a tree/b tree/e/f many/a many/b pwd"
    assert builder.shell(f"cd /; cat {files}; ls /work/deep /opt2") == (
        "ran sh 1 1 2 3 1 2 /work/deep /opt2: three two  /work/deep: Dockerfile a d".split(" ")
    )
    assert builder.config["WorkingDir"] == "/work/deep"


def test_only_what_is_new_is_done(builder: Builder) -> None:
    make(builder.context, {"a": "1"})
    lines = [
        "FROM busybox AS one",
        "RUN date +%N >/now",
        "COPY a /a",
        "ENV X=1",
        "RUN echo $X >/x",
        "FROM one",
    ]
    builder(*lines)
    first = builder.details()["Id"]
    os.utime(builder.context / "a")  # a fresh checkout
    assert ran(builder(*lines)) == []
    assert builder.details()["Id"] == first
    # A label changes no file, and COPY sees no variables.
    assert ran(builder(lines[0], "LABEL a=b", *lines[1:])) == []
    assert ran(builder(*lines[:3], "ENV X=2", *lines[4:])) == ["RUN echo $X >/x"]
    (builder.context / "a").chmod(0o755)
    assert ran(builder(*lines)) == ["COPY a /a", "RUN echo $X >/x"]
    assert len(ran(builder(*lines, options=("--no-cache",)))) == 3


def test_steps_are_kept_until_they_are_pruned(unionctl: Unionctl, tmp_path: Path) -> None:
    builder = Builder(unionctl, tmp_path / "context")
    lines = ["FROM busybox", "RUN echo x >/x", "RUN --mount=type=cache,target=/c echo y >/c/y"]
    builder(*lines)
    unionctl("rmi", "made")
    assert ran(builder(*lines)) == []
    assert unionctl.out("builder", "prune", "-f").startswith("Total reclaimed space: ")
    assert builder.shell("cat /x") == ["x"]  # the image needs none of it
    unionctl("rmi", "made")
    assert len(ran(builder(*lines))) == 2
    unionctl("rmi", "busybox", "made")
    unionctl("builder", "prune", "-f")
    for kind in ("layers/sha256", "images/blobs/sha256", "steps", "build-caches"):
        assert [path.name for path in unionctl.root.glob(f"{kind}/*") if path.suffix != ".lock"] == []


def test_stages(builder: Builder) -> None:
    output = builder(
        "ARG BASE=nosuch",
        "FROM $BASE AS one",
        "RUN echo one >/one",
        "FROM busybox AS unused",
        "RUN false",
        "FROM busybox AS two",
        "COPY --from=one /one /opt/two /",
        "COPY --from=0 /etc/text /from-number",
        "FROM two",
        "COPY --from=busybox:latest /etc/text /from-image",
        options=("--build-arg", "BASE=busybox"),
    )
    assert "RUN false" not in output
    assert builder.shell("cat /one /two /from-number /from-image") == ["one", "2", "a text", "a text"]
    builder("FROM busybox AS a", "ENV S=1", "FROM a", "ENV S=2", "FROM nosuch", options=("--target", "A"))
    assert "S=1" in builder.config["Env"]
    assert "there are a" in builder("FROM busybox AS a", options=("--target", "x"), code=1)
    later = ("FROM busybox AS a", "COPY --from=b x y", "FROM busybox AS b")
    assert "the stage 'b' comes later" in builder(*later, options=("--target=a",), code=1)


def test_arguments(builder: Builder) -> None:
    lines = (
        "ARG OUTER=o",
        "ARG UNSEEN=u",
        "FROM busybox",
        "ARG OUTER",
        "ARG A=1",
        "ARG B=$A-${C:-none}",
        "ENV A=env",
        "ARG D",
        "RUN echo $OUTER $UNSEEN $A $B ${D:-unset} $HTTP_PROXY >/out",
        "LABEL b=$B unseen=$TARGETOS",
        "ARG TARGETOS",
        "LABEL seen=$TARGETOS",
    )
    builder(*lines, options=("--build-arg", "A=2", "--build-arg", "D=d"))
    assert builder.shell("cat /out") == ["o env 2-none d"]
    assert builder.config["Labels"] == {"b": "2-none", "unseen": "", "seen": "linux"}
    assert not any(pair.startswith(("B=", "D=")) for pair in builder.config["Env"])
    output = builder(*lines, options=("--build-arg", "HTTP_PROXY=p", "--build-arg", "NOT=1", "--no-cache"))
    assert "build-args ['NOT'] were not consumed" in output
    assert builder.shell("cat /out") == ["o env 1-none unset p"]
    assert "HTTP_PROXY" not in str(builder.details())


def test_owners_modes_times_and_kinds(builder: Builder) -> None:
    inner = {"g": File(content="g", mode=0o600), "h": HardLink("d/g"), "l": Symlink(target="g")}
    make(
        builder.context,
        {
            "f": File(content="f", mode=0o4755, owner=(5, 6)),
            "d": Dir(mode=0o700, names=inner),
            "into": Symlink(target="d/g"),
        },
    )
    builder(
        "FROM busybox",
        "COPY f /f",
        "COPY --chown=alice f /alice",
        "COPY --chown=7 f /seven",
        "COPY --chown=alice:wheel --chmod=640 d /own",
        "COPY d /d",
        "COPY into /followed",
        "COPY --from=busybox /data/seed /kept",
    )
    files = "/f /alice /seven /own /own/g /d /d/g /followed /kept"
    assert builder.shell(f"stat -c '%n %u:%g %a' {files}; readlink /d/l") == [
        "/f 0:0 4755",
        "/alice 1000:1000 4755",
        "/seven 7:7 4755",
        "/own 1000:10 755",
        "/own/g 1000:10 640",
        "/d 0:0 755",
        "/d/g 0:0 600",
        "/followed 0:0 600",
        "/kept 1000:29 640",
        "g",
    ]
    assert (
        builder.shell("stat -c '%i' /d/g /d/h | uniq | wc -l; stat -c %Y /f /d/g")
        == ["1"] + ["1234567890"] * 2
    )


def test_copy_finds_what_is_meant(builder: Builder) -> None:
    deep = {"y": {"p.txt": "p", "q.md": "q"}}
    make(builder.context, {"a.txt": "a", "b.txt": "b", "c.md": "c", "x": deep, "[z]": "z"})
    (builder.context / ".dockerignore").write_text("*.md\n!keep.md\nx/y/q*\n")
    builder(
        "FROM busybox",
        "COPY *.txt /stars/",
        "COPY --parents x/y/p.txt x/./y /parents/",
        "COPY x /x",
        "COPY [[]z] /bracket",
        "COPY --exclude=*.txt . /excluded/",
        "COPY a.t?t /x/../opt/",
    )
    said = builder.shell("cd /; ls -A stars; find parents x excluded -type f | sort; cat bracket opt/a.txt")
    assert said == (
        "a.txt b.txt excluded/.dockerignore excluded/Dockerfile excluded/[z] excluded/x/y/p.txt "
        "parents/x/y/p.txt parents/y/p.txt x/y/p.txt za"
    ).split(" ")
    for source, message in (
        ("c.md", "excluded by .dockerignore: c.md"),
        ("../../etc/passwd", "file not found in the build context"),
        ("a.txt b.txt", "the destination must be a directory"),
    ):
        assert message in builder("FROM busybox", f"COPY {source} /x", code=1)


def test_neither_context_nor_image_lead_out(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    make(
        builder.context, {"out": Symlink(target="../secret"), "abs": Symlink(target=str(tmp_path)), "a": "a"}
    )
    for source in ("out", "abs/secret", str(tmp_path / "secret")):
        assert "not found" in builder("FROM busybox", f"COPY {source} /x", code=1)
    builder(
        "FROM busybox",
        "COPY . /all/",
        f"RUN ln -s {tmp_path} /out && ln -s ../../../../opt /up",
        "COPY a /out/",
        "COPY a /up/sub/",
    )
    assert not (tmp_path / "a").exists()
    assert builder.shell(f"readlink /all/out; cat {tmp_path}/a /opt/sub/a") == ["../secret", "aa"]


def test_copies_replace_what_is_there(builder: Builder) -> None:
    make(builder.context, {"file": "now a file", "tree": {"text": {"in": "x\n"}, "new": "n"}})
    refused = builder("FROM busybox", "RUN mkdir -p /y/new", "COPY tree/new /y/", code=1)
    assert "cannot copy a file over the directory /y/new" in refused
    builder("FROM busybox", "RUN ln -s /etc/passwd /p", "COPY tree /etc/", "COPY file /p")
    assert builder.shell("cat /etc/text/in; head -n 1 /etc/passwd; cat /p") == [
        "x",
        "root:x:0:0:root:/root:/bin/sh",
        "now a file",
    ]


def test_heredocs(builder: Builder) -> None:
    builder(
        "FROM busybox",
        "ENV V=v",
        "RUN <<EOF\necho one\necho $V >/script\nEOF",
        "RUN <<EOF\n#!/bin/cat\nliteral $V\nEOF",
        "RUN cat <<A - >/joined && cat <<'B' >>/joined\na $V\nA\nb $V\nB",
        "COPY <<plain <<-'quoted' /files/\n$V \\$V\nplain\n\t$V\n\tquoted",
        "COPY --chmod=755 <<EOF /bin/tool\n#!/bin/sh\necho tool\nEOF",
        "RUN tool >/tool",
    )
    said = builder.shell("cat /script /joined /files/plain /files/quoted /tool")
    assert said == ["v", "a v", "b $V", "v $V", "$V", "tool"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server's address, and the directory that it serves."""
    place = tmp_path / "web"
    place.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", place
        server.shutdown()
        thread.join()


def a_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime = len(data), 77, 1_500_000_000
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_add(builder: Builder, web: tuple[str, Path]) -> None:
    address, served = web
    (served / "f.txt").write_text("served")
    (served / "f.tar").write_bytes(a_tar({"t": b""}))
    for kind in ("plain", "gz", "bz2", "xz"):
        data = a_tar({f"in-{kind}/f": b"x"}, "w" if kind == "plain" else f"w:{kind}")
        (builder.context / f"{kind}.tar").write_bytes(data)
    digest = hashlib.sha256(b"served").hexdigest()
    builder(
        "FROM busybox",
        "ADD *.tar /un/",
        "ADD --unpack=false xz.tar /packed",
        f"ADD {address}/f.txt {address}/f.tar /url/",
        f"ADD --checksum=sha256:{digest} {address}/f.txt /named",
        f"ADD --unpack=true {address}/f.tar /url-un/",
    )
    said = builder.shell(
        "cd /; ls -d un/*/* url/* url-un/*; stat -c '%u %Y' un/in-gz/f; stat -c %a named packed"
    )
    assert said == [
        *("un/in-bz2/f", "un/in-gz/f", "un/in-plain/f", "un/in-xz/f", "url-un/t", "url/f.tar", "url/f.txt"),
        *("77 1500000000", "600", "644"),
    ]
    for words, message in (
        (f"--checksum=sha256:{'0' * 64} {address}/f.txt", f"has the digest sha256:{digest}"),
        (f"{address}/none", "404"),
        ("https://example.com/r.git", "is a git repository"),
    ):
        assert message in builder("FROM busybox", f"ADD {words} /x", code=1)


def test_mounts_of_a_run(builder: Builder, tmp_path: Path) -> None:
    make(builder.context, {"src": {"f": "from context\n"}, "ignored": "i"})
    (builder.context / ".dockerignore").write_text("ignored")
    (tmp_path / "token").write_text("s3cret")
    cache = "--mount=type=cache,sharing=locked,id=c,target="
    secret = "--mount=type=secret,id=token"
    output = builder(
        "FROM busybox AS other",
        "RUN echo other >/o",
        "FROM busybox",
        "WORKDIR /w",
        "RUN --mount=type=bind,source=src,target=/src --mount=type=bind,from=other,target=/other "
        "cat /src/f /other/o; ! touch /src/x",
        "RUN --mount=type=bind,target=.,rw touch made && ls",
        f"RUN {cache}/var/cache/c echo 1 >>/var/cache/c/n; wc -l </var/cache/c/n",
        f"RUN {cache}/elsewhere echo 2 >>/elsewhere/n; wc -l </elsewhere/n",
        "RUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1; touch /t/x",
        f"RUN {secret} {secret},target=/s,mode=0440,uid=1000 {secret},env=TOKEN "
        "cat /run/secrets/token; stat -c '%a %u' /s; test ${#TOKEN} = 6",
        "RUN --mount=type=secret,id=none ls /run/secrets 2>&1 || echo no secret",
        options=("--secret", f"id=token,src={tmp_path}/token"),
    )
    lines = ("from context\n", "other\n", "Dockerfile\nmade\nsrc", "\n1\n", "\n2\n", "1024", "440 1000")
    for words in (*lines, "s3cret", "no secret"):
        assert words in output, words
    # Of the mounts nothing is in the image, not even their places.
    places = "/src /other /var /elsewhere /t /run /s"
    assert builder.shell(f"ls -A /w; ls -d {places} 2>/dev/null || true") == []
    assert b"s3cret" not in builder.unionctl("save", "made").stdout
    assert "s3cret" not in builder.unionctl.out("history", "--no-trunc", "made")


def test_mounts_that_are_refused(builder: Builder) -> None:
    for text, message in (
        ("--mount=type=ssh", "no agent is passed on"),
        ("--mount=type=secret,id=a,required=true", "secret a: not found"),
        ("--mount=type=bind,source=none,target=/x", "'none' not found"),
        ("--mount=type=bund,target=/x", "unsupported type 'bund'"),
        ("--mount=type=cache,target=/x,frm=y", "unexpected key 'frm'"),
        ("--mount=type=tmpfs", "target is required"),
        ("--network=bridged", "unknown network 'bridged'"),
        ("--security=insecure", "not given to builds"),
    ):
        assert message in builder("FROM busybox", f"RUN {text} true", code=1), text


def test_networks_users_and_volumes(builder: Builder) -> None:
    output = builder(
        "FROM busybox",
        "RUN --network=none echo found $(ls /sys/class/net)",
        "USER alice",
        "RUN id -un; touch /tmp/mine",
        "VOLUME /data",
        "USER root",
        "RUN echo kept >/data/new",
    )
    assert "found lo\n" in output and "alice\n" in output
    assert builder.shell("stat -c %U /tmp/mine; cat /data/new") == ["alice", "kept"]


def test_triggers(builder: Builder) -> None:
    make(builder.context, {"app": "app\n"})
    builder("FROM busybox", "ONBUILD COPY app /app", "ONBUILD RUN echo triggered >/t")
    builder.unionctl("tag", "made", "with-triggers")
    builder("FROM with-triggers", "RUN cat /app /t")
    assert builder.shell("cat /app /t") == ["app", "triggered"]
    assert "OnBuild" not in builder.config


def test_options(builder: Builder, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere"
    file.write_text("FROM busybox\nLABEL a=1 b=2")
    unionctl = builder.unionctl
    quiet = unionctl(
        *("build", "-q", "-t", "one", "-t", "two:2", "--label", "b=3", "--iidfile", str(tmp_path / "iid")),
        *("-f", str(file), str(builder.context)),
    )
    identifier = quiet.stdout.decode().strip()
    assert quiet.stderr == b""
    assert (tmp_path / "iid").read_text() == identifier
    assert unionctl.out("images", "-q", "--no-trunc", "two") == identifier
    assert unionctl.out("inspect", "-f", "{{json .Config.Labels}}", "one") == '{"a":"1","b":"3"}'
    piped = unionctl("build", "-t", "piped", "-", stdin=b"FROM busybox\nLABEL x=y")
    assert b"Successfully tagged piped:latest" in piped.stdout
    context = a_tar({"sub/f": b"f", "sub/D": b"FROM busybox\nCOPY sub/f /f"}, "w:gz")
    unionctl("build", "-t", "tarred", "-f", "sub/D", "-", stdin=context)
    assert builder.shell("cat /f; stat -c ' %u' /f", "tarred") == ["f 0"]


def test_what_can_be_asked_for_wrongly(builder: Builder, tmp_path: Path) -> None:
    place = str(builder.context)
    for words, message in (
        ((str(tmp_path / "none"),), "not found"),
        ((place,), "failed to read dockerfile"),
        (("https://example.com/x.git",), "is a git repository"),
        (("http://127.0.0.1:1/x",), "cannot fetch"),
        (("--platform", "linux/none", place), "cannot be built here"),
        (("-t", "BAD", place), "invalid reference"),
        (("--secret", "id=x,src=/nosuch", place), "secret x: /nosuch"),
    ):
        assert message in builder.unionctl.err("build", *words, code=1), words
    assert "No such image: nosuch\n 1 | FROM nosuch\n" in builder("FROM nosuch", code=1)
    for option in ("SOURCE_DATE_EPOCH=x", "=x"):
        assert "x" in builder("FROM busybox", options=("--build-arg", option), code=1)


def test_a_command_that_fails(builder: Builder) -> None:
    before = builder.unionctl.out("images", "-q")
    output = builder("FROM busybox", "RUN echo kept >/k", "RUN echo said; \\", "  exit 42", code=42)
    assert "said\n" in output
    assert output[output.index("unionctl: ") :].splitlines() == [
        "unionctl: Dockerfile:3: RUN: "
        "The command '/bin/sh -c echo said;   exit 42' returned a non-zero code: 42",
        " 3 | RUN echo said; \\",
        "   | ^^^",
    ]
    assert builder.unionctl.out("images", "-q") == before
    assert builder.unionctl.out("ps", "-aq") == ""
    assert not builder.unionctl.mounts()
    again = builder("FROM busybox", "RUN echo kept >/k", 'RUN ["nosuch"]', code=127)
    assert ran(again) == ['RUN ["nosuch"]']
    quiet = builder("FROM busybox", "RUN echo said; false", options=("-q",), code=1)
    assert quiet.startswith("said\nunionctl: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_ended(builder: Builder, number: signal.Signals) -> None:
    (builder.context / "Dockerfile").write_text("FROM busybox\nRUN echo begun; sleep 1000\n")
    process = builder.unionctl.popen("build", str(builder.context), stderr=subprocess.PIPE)
    assert process.stderr is not None
    while (line := process.stderr.readline()) != b"begun\n":
        assert line
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    if number == signal.SIGKILL:  # the next build finds what is left
        builder("FROM busybox")
    assert eventually(lambda: not builder.unionctl.mounts(), 30)
    assert builder.unionctl.out("ps", "-aq") == ""
    assert {path.name for path in builder.unionctl.root.glob("tmp/*")} <= {"lock"}


def test_the_same_input_gives_the_same_image(builder: Builder) -> None:
    make(builder.context, {"a": "1", "d": {"b": "2"}})
    lines = ("FROM busybox", "RUN mkdir /n; echo x >/n/a", "COPY . /c/", "WORKDIR /w/x", "CMD x")
    digests = []
    for name in ("first", "second"):
        (builder.context / "d").touch()
        os.utime(builder.context / "a")
        options = ("--no-cache", "-t", name, "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
        builder(*lines, options=options)
        digests.append(builder.unionctl.out("images", "--digests", "--format", "{{.Digest}}", name))
    assert digests[0] == digests[1]
    assert builder.shell("stat -c %Y /n/a /n /w /c/a") == ["1600000000"] * 4
    assert builder.details()["Created"] == "2020-09-13T12:26:40Z"


def test_from_scratch(builder: Builder) -> None:
    make(builder.context, {"f": "x"})
    builder("FROM scratch", "COPY f /", 'CMD ["/f"]')
    assert builder.config == {"Cmd": ["/f"]}
    builder("FROM scratch", "LABEL only=config")
    assert builder.details()["RootFS"]["Layers"] == []


def test_builds_at_once(builder: Builder, tmp_path: Path) -> None:
    other = Builder(builder.unionctl, tmp_path / "other")
    places = {"one": builder.context, "two": other.context, "three": builder.context}
    for place in places.values():
        (place / "Dockerfile").write_text("FROM busybox\nRUN date +%N >/a; sleep 0.5\nRUN echo b >/b")
    running = [
        builder.unionctl.popen(
            *("build", "--no-cache", "-t", name, str(place)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name, place in places.items()
    ]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    for name in places:
        assert builder.shell("cat /b", name) == ["b"]
