"""Sources in a store: one that speaks S3 and one that answers as the Hugging Face hub does, both on this machine."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from fox.data.inventory import take_inventory
from fox.data.quarantine import Tally
from fox.data.sources import read_source
from fox.errors import UserError
from fox.progress import Meter
from fox.recipe.schema import Source
from tests.journey.micro_run import ENVIRONMENT, HERE, fox

STORIES = [f"Story {number}. The fox ran over the hill." for number in range(40)]
FILES = {
    "stories/a.jsonl.gz": gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in STORIES[:30]).encode()),
    "stories/more/b.txt": STORIES[30].encode(),
    "stories/readme.pdf": b"%PDF",
    "chats.jsonl": (
        json.dumps({"messages": [{"role": r, "content": "Hi!"} for r in ("user", "assistant")]}) + "\n"
    ).encode(),
}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a store that speaks S3, with FILES in a bucket `fox`."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    import boto3

    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="fox")
    for name, content in FILES.items():
        client.put_object(Bucket="fox", Key=name, Body=content)
    yield address
    server.stop()


@pytest.fixture
def credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    said = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)


class _Hub(BaseHTTPRequestHandler):
    """As the hub answers about a dataset `fox/stories` whose files are FILES."""

    commit = "c" * 40

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/datasets/fox/stories/tree/"):
            self._json(self._entries(path.partition(f"/tree/{self.commit}")[2] or path.partition("/tree/main")[2]))
        elif path.startswith("/api/datasets/fox/stories"):
            self._json({"id": "fox/stories", "sha": self.commit, "siblings": [], "private": False})
        elif path.startswith("/datasets/fox/stories/resolve/"):
            self._file(FILES.get("/".join(path.split("/")[6:])))
        else:
            self._json({"error": "not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entries = {entry["path"]: entry for entry in self._entries("")}
        self._json([entries[path] for path in asked["paths"] if path in entries])

    def _entries(self, below: str) -> list[dict[str, Any]]:
        folders = {name.rpartition("/")[0] for name in FILES if "/" in name}
        found: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders
        ]
        for path, content in FILES.items():
            found.append({"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)})
        return [entry for entry in found if entry["path"].startswith(below.strip("/"))]

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._json({"error": "not found"}, 404)
        else:
            self._send(content, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.commit})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delitem(ENVIRONMENT, "HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(ENVIRONMENT, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def read(path: str, **keys: Any) -> tuple[list[str | None], Tally]:
    source = Source(path=path, **keys)
    tally = Tally("far", source)
    return [document.text for document in read_source("far", source, tally)], tally


def test_a_folder_of_a_bucket_is_read_as_one_on_the_disk(credentials: None) -> None:
    texts, tally = read("s3://fox/stories")
    assert texts == STORIES[:31]
    assert (tally.files, tally.skipped) == (2, {".pdf": 1})
    assert read("s3://fox/stories", files="more/*")[0] == [STORIES[30]]
    assert read("s3://fox/stories/a.jsonl.gz")[0] == STORIES[:30]


def test_a_changed_file_is_another_version(credentials: None, s3: str) -> None:
    from fox.data.inventory import fingerprints
    from fox.recipe import Recipe

    recipe = Recipe.model_construct(source={"far": Source(path="s3://fox/changing")})
    import boto3

    client = boto3.client("s3", endpoint_url=s3)
    found = []
    for content in (b"one", b"two", b"one"):
        client.put_object(Bucket="fox", Key="changing/a.txt", Body=content)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        found.append(fingerprints(take_inventory(recipe, {}, Meter("", None, "bytes"))))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("path", ["s3://fox/nothing", "s3://nobody/stories", "nowhere://fox/stories"])
def test_what_is_not_there_is_told(credentials: None, path: str) -> None:
    with pytest.raises(UserError) as error:
        read(path)
    assert f"source.far.path = {path!r}: can't be listed" in str(error.value)


def test_a_file_that_goes_while_it_is_read_is_set_aside(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(
        s3fs.S3FileSystem, "get_file", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("gone"))
    )
    with pytest.raises(UserError) as error:
        read("s3://fox/stories")
    assert "2 x can't be fetched (first: a.jsonl.gz)" in str(error.value)


@pytest.mark.parametrize("store", ["s3://fox", "hf://datasets/fox/stories"])
def test_a_corpus_is_made_of_a_store(store: str, credentials: None, hub: None, tmp_path: Path) -> None:
    page = (HERE / "micro.toml").read_text().replace('path = "text"', f'path = "{store}/stories"')
    page = page.replace('path = "chats.jsonl"', f'path = "{store}/chats.jsonl"')
    page = page.replace("[data]\n", '[data]\nunlicensed = "keep"\nexecutor = {}\n')
    (tmp_path / "micro.toml").write_text(page)
    fox(tmp_path, "corpus", "micro.toml")
    facts = json.loads((tmp_path / "runs/micro/manifests/corpus.json").read_bytes())["facts"]["sources"]
    assert {name: source["funnel"]["kept"]["documents"] for name, source in facts.items()} == {
        "stories": 31,
        "chats": 1,
    }
