"""Brings the data of the example jobs: `python jobs/get_data.py [FOLDER]` (default ~/.raybm/datasets/hutto_2014).

Human sentiment ratings of short texts (C.J. Hutto and E. Gilbert, ICWSM 2014): four TSVs of id, mean rating from -4 to 4 of some 20
people, text. They come inside the source package of vaderSentiment 3.3.2 on PyPI (MIT), which pip downloads and checks against the
digest below. Nothing is installed. What is already there and whole is left alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INSIDE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {
    "movieReviewSnippets_GroundTruth.txt": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    "amazonReviewSnippets_GroundTruth.txt": "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
    "nytEditorialSnippets_GroundTruth.txt": "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
    "tweets_GroundTruth.txt": "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
}
README = f"""Sentiment ratings of short texts: id, mean rating (-4 to 4), text; tab-separated.

Source: additional_resources/hutto_ICWSM_2014.tar.gz in the source package of {PACKAGE} (PyPI), sha256 {SHA256}.
Licence: MIT, Copyright (c) 2016 C.J. Hutto.
Cite: Hutto, C.J. and Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. ICWSM-14.
"""
PIP_TIMEOUT_S = 300


def main(folder: Path) -> int:
    missing = [name for name, digest in FILES.items() if not (folder / name).is_file() or sha256((folder / name).read_bytes()) != digest]
    if missing:
        print(f"Downloading the source package of {PACKAGE} (2.5 MB) for the ratings of Hutto and Gilbert 2014 ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as aside:
            extract(download(Path(aside)), Path(aside))
            for name in missing:
                (Path(aside) / name).replace(folder / name)  # in one step, so a file that is there is whole
            (Path(aside) / "README.txt").write_text(README, encoding="utf-8")
            (Path(aside) / "README.txt").replace(folder / "README.txt")
    print(f"{folder}: {', '.join(FILES)}")
    if importlib.util.find_spec("chatterbot_corpus") is None:
        print("chatterbot-corpus is not installed (the chat job reads it): pip install chatterbot-corpus==1.3.3", file=sys.stderr)
        return 1
    return 0


def download(into: Path) -> Path:
    """The source archive. pip holds it against the digest before it looks inside."""
    wanted = into / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    try:
        done = subprocess.run(
            [*command, "-r", str(wanted), "-d", str(into)], capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"pip did not finish in {PIP_TIMEOUT_S} s. Check the connection to the package index and run this again.")
    archives = sorted(into.glob("*.tar.gz"))
    if done.returncode or not archives:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        sys.exit(f"pip could not download {PACKAGE}:\n{reason}\nCheck the package index (pip config list) and run this again.")
    if sha256(archives[0].read_bytes()) != SHA256:
        sys.exit(f"{archives[0].name} is not the file that was expected (sha256). It was thrown away.")
    return archives[0]


def extract(archive: Path, folder: Path) -> None:
    """The four TSVs of the archive in the archive, unchanged. The data filter lets nothing be written elsewhere."""
    with tarfile.open(archive) as outer:
        member = outer.extractfile(INSIDE)
        assert member is not None  # the digest says so
        with tarfile.open(fileobj=io.BytesIO(member.read())) as inner:
            for name in FILES:
                entry = inner.getmember(f"hutto_ICWSM_2014/{name}")
                inner.extract(entry.replace(name=name, mode=0o644), folder, filter="data")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "~/.raybm/datasets/hutto_2014").expanduser()))
