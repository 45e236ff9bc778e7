"""Paths: files, globs, folders inside packages, S3."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raybm.core.errors import NotFound, StorageError
from raybm.core.storage import open_storage
from raybm.data import Jsonl
from raybm.data.files import File, expand, open_file, state, version
from raybm.data.reading import Facts, Wanted, frames


def test_files_globs_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [Path(file.path).name for file in expand(f"{tmp_path}/[ab].txt")] == ["a.txt", "b.txt"]
    assert [Path(file.path).name for file in expand(f"{tmp_path}/**/c.txt")] == ["c.txt"]
    assert expand(f"{tmp_path}/odd[1].txt")[0].bytes == 10
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/a.txt")[0].path == str(tmp_path / "a.txt")


def test_package_files() -> None:
    files = expand("package:pip/__*__.py")
    assert [file.path for file in files] == ["package:pip/__init__.py", "package:pip/__main__.py", "package:pip/__pip-runner__.py"]


@pytest.mark.parametrize("path", ["no/such.txt", "none/*.txt", "package:no-such-package/x.txt", "package:pip/none*.txt", "/tmp"])
def test_nothing_there_is_not_found(path: str) -> None:
    with pytest.raises(NotFound) as caught:
        expand(path)
    assert caught.value.where == path and caught.value.remedy


@pytest.mark.parametrize("look", ["is_file", "is_dir"])
def test_where_one_may_not_look_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    def refuses(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, look, refuses)
    with pytest.raises(NotFound, match=str(tmp_path)) as caught:
        expand(f"{tmp_path}/closed/a.txt")
    assert caught.value.remedy


def test_a_file_that_was_unpacked_elsewhere_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("same")
        os.utime(tmp_path / folder / "a.csv", (len(known), len(known)))
        monkeypatch.chdir(tmp_path / folder)
        known.append(state("a.csv"))
    assert known[0] == known[1] and known[0][0][0] == "a.csv"
    (tmp_path / "there" / "a.csv").write_text("othe")
    assert state("a.csv")[0][1] != known[1][0][1]
    monkeypatch.chdir(tmp_path)
    assert state(str(tmp_path / "here" / "a.csv"))[0][0] == str(tmp_path / "here" / "a.csv"), "wherever it is asked from"


def test_a_changed_file_has_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    before = version(expand(str(path))[0])
    path.write_text("ab")
    assert version(expand(str(path))[0]) != before


class Breaks:
    """A far storage whose connection breaks in the middle of a file."""

    def arrow(self, prefix: str = "") -> tuple[Breaks, str]:
        return self, "bucket/a.jsonl"

    def open_input_stream(self, path: str, compression: None) -> Breaks:
        return self

    def read(self, size: int) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")

    def close(self) -> None:
        pass


def test_a_storage_that_goes_away_in_mid_file_is_a_storage_error() -> None:
    file = File("s3://bucket/a.jsonl", 10, Breaks())  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=r"s3://bucket/a\.jsonl: AWS Error NETWORK_CONNECTION"), open_file(file) as opened:
        opened.text.read()


@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.integration)])
def test_a_pattern_means_the_same_everywhere(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = str(tmp_path) if place == "folder" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    for name in ("a.txt", "in/a.txt", "in/deep/er/a.txt", "in/b.csv", "in/.hidden.txt", "in/.deep/a.txt", "in/odd[1].txt", "in/odd1.txt"):
        open_storage(root).write(name, b"x")
    found = {
        "**/a.txt": ["a.txt", "in/a.txt", "in/deep/er/a.txt"],
        "in/**/*.txt": ["in/a.txt", "in/deep/er/a.txt", "in/odd1.txt", "in/odd[1].txt"],
        "in/**": ["in/a.txt", "in/b.csv", "in/deep/er/a.txt", "in/odd1.txt", "in/odd[1].txt"],
        "*/*/a.txt": [],
        "i?/.h*": ["in/.hidden.txt"],
        "in/odd[1].txt": ["in/odd[1].txt"],
        "in/[ab].*": ["in/a.txt", "in/b.csv"],
    }
    for pattern, expected in found.items():
        if expected:
            assert [file.path for file in expand(f"{root}/{pattern}")] == [f"{root}/{name}" for name in expected], pattern
        else:
            with pytest.raises(NotFound):
                expand(f"{root}/{pattern}")


@pytest.mark.integration
def test_s3_globs_and_reads(s3: str) -> None:
    storage = open_storage(f"{s3}/data-test")
    storage.write("in/a.jsonl", b'{"text": "a", "label": "x"}\n')
    storage.write("in/b.jsonl", b'{"text": "b", "label": "x"}\n')
    storage.write("in/deeper/c.jsonl", b"{}\n")
    files = expand(f"{s3}/data-test/i?/*.jsonl")
    assert [file.path for file in files] == [f"{s3}/data-test/in/a.jsonl", f"{s3}/data-test/in/b.jsonl"]
    assert expand(f"{s3}/data-test/in/a.jsonl") == files[:1]
    frame, facts = frames(Jsonl(path="x"), 0, 0, files[1], Wanted((("text",),)), 1 << 20)
    assert frame["text"].tolist() == ["b"] and isinstance(facts, Facts) and version(files[0])  # type: ignore[union-attr]
    with pytest.raises(NotFound):
        expand(f"{s3}/data-test/none/*.jsonl")
