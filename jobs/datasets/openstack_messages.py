"""Messages of OpenStack's dashboard in English with their Chinese translations: labels, buttons, errors, explanations.

Made of the message catalogues (.po) in the package: no fuzzy entries, no plurals, each English message once. Apache-2.0, the OpenStack
project and its translators.
"""

from __future__ import annotations

import ast
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

NAME = "openstack_messages"
PACKAGE = "horizon==27.0.0"
SHA256 = "8a981dae4fb6626e71553aa185f6e429b0b1efb86b04b0a72c3b18ee04f1f990"
FILES = {"chinese.jsonl": "a503960f383858af55447d29da0fea367c07bf11fd8ddb0ce11eb3b2a46e2136"}


def make(archive: Path, folder: Path) -> None:
    found: dict[str, str] = {}
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            if "/locale/zh_Hans/LC_MESSAGES/" in name and name.endswith(".po"):
                for english, chinese in messages(wheel.read(name).decode()):
                    found.setdefault(english, chinese)
    lines = [json.dumps({"prompt": english, "completion": chinese}, ensure_ascii=False) for english, chinese in sorted(found.items())]
    (folder / "chinese.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def messages(catalogue: str) -> Iterator[tuple[str, str]]:
    """Entries of a .po file: blocks of `msgid` and `msgstr`, each a string over one line or several, parted by blank lines."""
    for block in catalogue.split("\n\n"):
        entry: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith("msg"):
                key, _, line = line.partition(" ")
            if key and line.startswith('"'):
                entry[key] = entry.get(key, "") + ast.literal_eval(line)
        fuzzy = any(line.startswith("#,") and "fuzzy" in line for line in block.splitlines())
        if entry.get("msgid") and entry.get("msgstr") and not fuzzy:
            yield entry["msgid"], entry["msgstr"]
