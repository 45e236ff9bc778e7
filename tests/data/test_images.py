from __future__ import annotations

from pathlib import Path

from raybm.data import Images
from raybm.data.files import expand
from raybm.data.reading import Facts, Wanted, frames
from raybm.models import dataurl
from tests.pictures import noise


def test_a_file_is_a_row_and_its_folder_the_label(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(noise(len(label)))
    (tmp_path / "dog" / "2.png").write_bytes(b"PK\x03\x04 a spreadsheet")
    (tmp_path / "dog" / "3.png").write_bytes(b"")
    source = Images(path=str(tmp_path / "*" / "*.png"))
    rows, facts = [], []
    for index, file in enumerate(expand(source.path)):
        for made in frames(source, 0, index, file, Wanted((("image", "label"),), ("file",)), 1 << 20):
            if isinstance(made, Facts):
                facts.append(made)
            else:
                rows += made.to_dict("records")
    assert [(row["label"], row["file"], row["_bad"]) for row in rows] == [
        ("cat", "1.png", ""),
        ("dog", "1.png", ""),
        (None, None, "is no image of a known format."),
        (None, None, "is empty."),
    ]
    assert dataurl.decode(rows[0]["image"]) == noise(3)
    assert [fact.bytes for fact in facts] == [len(noise(3)), len(noise(3)), 18, 0]
    named = Images(path=source.path, columns={"label": "file"})
    file = expand(source.path)[0]
    (row,) = next(iter(frames(named, 0, 0, file, Wanted((("image", "label"),)), 1 << 20))).to_dict("records")
    assert row["label"] == "1.png"
