"""The same steps for every engine, so that what they make can be compared."""

from __future__ import annotations

from pathlib import Path

import image

#: What a container does before it is committed: each way in which a lower file can change.
SCRIPT = """set -e
echo new >/new; chown 3:4 /new; chmod 4751 /new; ln /new /new-link
rm /replaced; mkdir /replaced; echo in >/replaced/in
rm -r /kept /bin/vi
echo more >>/data/one
chown 7:8 /data/attributes; chmod 600 /data/big
mv /opaque/new /moved; rm -r /opaque; mkdir /opaque; echo again >/opaque/again
mkfifo /data/pipe; ln -s one /data/symlink; mv /data/link /data/capable /root; cp -r /var /var-copy
truncate -s 1M /sparse
touch -h -d '2001-02-03 04:05:06' /data/changed /replaced /root/link
"""

#: A file that SCRIPT leaves, and what is in it.
APPENDED = ("/data/two", "one\nmore")

CONTAINERFILE = f"""FROM {image.NAME} AS one
RUN mkdir /made && echo made >/made/file && ln /made/file /made/link && chmod 750 /made/file
FROM {image.NAME}
COPY --from=one --chown=1000:1000 /made /copied
COPY --chown=5:6 local /local
RUN rm -r /kept /data/big && rm /data/two && mkdir /kept && echo again >/kept/again
RUN rm -r /opaque && mv /data/setuid /moved
"""

#: Shows SEEN in a container of what CONTAINERFILE makes.
LOOK = """stat -c '%n %u:%g %a' /local /copied/* /moved
ls /data /kept; cat /local /kept/again; [ ! -e /opaque ]"""
SEEN = """/local 5:6 644
/copied/file 1000:1000 750
/copied/link 1000:1000 750
/moved 0:0 4755
/data:
attributes
capable
changed
fifo
link
one

/kept:
again
local
again"""


def context(place: Path) -> Path:
    """A directory to build CONTAINERFILE in."""
    place.mkdir()
    (place / "Dockerfile").write_text(CONTAINERFILE)
    (place / "local").write_text("local\n")
    (place / "local").chmod(0o644)
    return place
