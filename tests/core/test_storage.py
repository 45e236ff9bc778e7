from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from raybm.core import storage_s3
from raybm.core.errors import Conflict, NotFound, StorageError, UserError
from raybm.core.storage import LocalStorage, Storage, open_storage


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    uri = str(tmp_path / "storage") if request.param == "folder" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    return pickle.loads(pickle.dumps(open_storage(uri)))


def test_what_is_written_is_listed_read_sized_and_deleted(storage: Storage) -> None:
    for key in ("a/one.txt", "a/b/two.txt", "ab/three.txt", "top.txt"):
        storage.write(key, key.encode())
    storage.write("top.txt", b"new")

    assert storage.read("top.txt") == b"new"
    assert storage.keys() == ["a/b/two.txt", "a/one.txt", "ab/three.txt", "top.txt"]
    assert storage.keys("a") == ["a/b/two.txt", "a/one.txt"], "a prefix is a folder, not the beginning of a name"
    assert storage.keys("top.txt") == ["top.txt"]
    assert storage.folders() == ["a", "ab"]
    assert storage.at("a").folders() == storage.folders("a") == ["b"]
    assert storage.at("a").keys("b") == ["b/two.txt"]
    assert storage.size("a") == len("a/one.txt") + len("a/b/two.txt")
    assert storage.exists("a/one.txt") and not storage.exists("a") and not storage.exists("a/one")

    storage.delete("a")
    storage.delete("a")
    storage.delete("top.txt")
    assert storage.keys() == ["ab/three.txt"]
    storage.at("ab").delete("")
    assert storage.keys() == [] and storage.keys("none") == [] and storage.size() == 0
    with pytest.raises(NotFound, match=r"top\.txt"):
        storage.read("top.txt")


def test_lists_while_folders_are_deleted(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("kept/deep/one.txt", b"1")
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            storage.write("going/deep/two.txt", b"2")
            storage.delete("going")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(300):
            assert set(storage.keys()) - {"going/deep/two.txt"} == {"kept/deep/one.txt"}
            assert storage.keys("going") in ([], ["going/deep/two.txt"]) and storage.folders("going") in ([], ["deep"])
    finally:
        done.set()
        thread.join()


def test_create_and_replace_refuse_what_changed(storage: Storage) -> None:
    storage.create("alias", b"1")
    with pytest.raises(Conflict, match="alias"):
        storage.create("alias", b"2")
    data, tag = storage.read_tagged("alias")
    storage.replace("alias", b"2", tag)
    with pytest.raises(Conflict, match="alias"):
        storage.replace("alias", b"3", tag)
    assert (data, storage.read("alias")) == (b"1", b"2")
    _, tag = storage.read_tagged("alias")
    storage.delete("alias")
    with pytest.raises(Conflict):
        storage.replace("alias", b"4", tag)
    assert storage.keys() == []


@pytest.mark.parametrize("action", ["create", "replace"])
def test_one_of_many_writers_wins(storage: Storage, action: str) -> None:
    storage.write("old", b"0")
    _, tag = storage.read_tagged("old")
    start = threading.Barrier(8)

    def attempt(number: int) -> int | None:
        start.wait(30)
        try:
            storage.create("new", b"%d" % number) if action == "create" else storage.replace("old", b"%d" % number, tag)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(attempt, range(1, 9)) if number]
    assert len(winners) == 1
    assert storage.read("new" if action == "create" else "old") == b"%d" % winners[0]


def test_folders_go_up_and_come_down(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep" / "er").mkdir(parents=True)
    big = bytes(range(256)) * 80_000  # 20 MB: several parts
    (folder / "weights.bin").write_bytes(big)
    (folder / "deep" / "er" / "x.json").write_text("{}")
    storage.upload(folder, "models/m")
    assert storage.keys("models") == ["models/m/deep/er/x.json", "models/m/weights.bin"]

    fresh = tmp_path / "cache" / "m"
    storage.download("models/m", fresh)
    assert (fresh / "weights.bin").read_bytes() == big and (fresh / "deep/er/x.json").read_text() == "{}"
    (fresh / "weights.bin").write_bytes(b"torn")
    (fresh / "own").write_text("kept")
    storage.download("models/m", fresh)
    assert (fresh / "weights.bin").read_bytes() == big and (fresh / "own").exists()
    assert [path.name for path in fresh.parent.iterdir()] == ["m"], "nothing temporary stays"
    with pytest.raises(NotFound):
        storage.download("models/none", tmp_path / "none")
    with pytest.raises(NotFound):
        storage.upload(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_parquet_through_arrow(storage: Storage) -> None:
    system, path = storage.arrow("rows/train")
    system = pickle.loads(pickle.dumps(system))
    system.create_dir(path, recursive=True)
    pq.write_table(pa.table({"x": [1, 2]}), f"{path}/0.parquet", filesystem=system)
    assert storage.keys("rows") == ["rows/train/0.parquet"]
    assert pq.read_table(path, filesystem=system).to_pydict() == {"x": [1, 2]}


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\\b", "a/", "a\0"])
def test_a_key_stays_inside(tmp_path: Path, key: str) -> None:
    storage = open_storage(str(tmp_path))
    for act in (storage.read, storage.exists, lambda key: storage.write(key, b"")):
        with pytest.raises(UserError, match="is no key"):
            act(key)
    assert list(tmp_path.iterdir()) == []


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert open_storage("~/x").uri == open_storage(f"file://{tmp_path}/x").uri == str(tmp_path / "x")
    assert open_storage("s3://bucket/a/b/").at("c").uri == "s3://bucket/a/b/c"
    assert open_storage("s3://bucket").local() is None and open_storage("~/x").local("y") == tmp_path / "x" / "y"
    for wrong in ("gs://bucket", "file://host/x", "s3://", "s3://bucket/../x", "s3://b?endpoint_override=x"):
        with pytest.raises(UserError):
            open_storage(wrong)


def test_a_local_error_names_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotFound), match="file/x"):
        LocalStorage(tmp_path / "file").write("x", b"")
    assert not LocalStorage(tmp_path / "file").exists("x")


@pytest.mark.integration
def test_s3_errors_say_what_to_do(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"no bucket 'raybm-none'.*aws s3 mb s3://raybm-none"):
        open_storage("s3://raybm-none/p").exists("key")
    with pytest.raises(StorageError, match="no bucket 'raybm-none'"):
        open_storage("s3://raybm-none/p").write("key", b"")
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        with pytest.raises(StorageError, match=r"denied access \(SignatureDoesNotMatch\).*AWS_ACCESS_KEY_ID") as error:
            open_storage(s3).keys()
        assert "not-the-secret" not in str(error.value)
    with socket.socket() as unheard:  # bound, and not listening: the connection is refused
        unheard.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unheard.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"cannot be reached.*AWS_ENDPOINT_URL_S3"):
            open_storage(s3).read("key")


class _CutsBodies(BaseHTTPRequestHandler):
    """An S3 server with one object, whose connection breaks in the middle of every body."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("ETag", '"x"')
        self.end_headers()

    def do_GET(self) -> None:
        if "list-type" not in self.path:
            self.do_HEAD()
            self.wfile.write(b"part")
            return
        item = "<Contents><Key>a/b</Key><Size>1000</Size></Contents>"
        body = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{item}</ListBucketResult>'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_body_that_is_cut_off_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _CutsBodies) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        storage = open_storage("s3://bucket")
        with pytest.raises(StorageError, match="cannot be reached"):
            storage.download("a", tmp_path / "a")
        with pytest.raises(StorageError, match="cannot be reached"):
            storage.read("a/b")
        server.shutdown()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setattr(storage_s3, "files_under", lambda folder: ["gone"])
    with pytest.raises(NotFound, match="gone"):
        open_storage("s3://bucket").upload(tmp_path)


@pytest.fixture
def loses_first_answer(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A way to the server on which the first answer is lost: the connection breaks after the server has acted."""
    server_at = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    ends: list[socket.socket] = []

    def serve(lose: bool = True) -> None:
        with contextlib.suppress(OSError):  # the listener is shut down
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((server_at.hostname, server_at.port), timeout=30)
                ends.extend((client, server))
                threading.Thread(target=_pump, args=(server, client, lose), daemon=True).start()
                threading.Thread(target=_pump, args=(client, server, False), daemon=True).start()
                lose = False

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield s3
        listener.shutdown(socket.SHUT_RDWR)
    for end in ends:
        end.close()


def _pump(source: socket.socket, target: socket.socket, lose: bool) -> None:
    try:
        while data := source.recv(65536):
            if lose and not data.startswith(b"HTTP/1.1 100"):  # "100 Continue" only asks for the body
                target.shutdown(socket.SHUT_RDWR)
                source.shutdown(socket.SHUT_RDWR)
                return
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.mark.integration
def test_a_create_whose_answer_was_lost_is_no_conflict(loses_first_answer: str) -> None:
    storage = open_storage(f"{loses_first_answer}/{uuid.uuid4().hex}")
    storage.create("claim", b"mine")
    assert storage.read("claim") == b"mine"
