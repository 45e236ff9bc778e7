"""Answers to prefer: what somebody says, the answer that a person wrote to it, and one that was written to something else.

Made of the English conversations of chatterbot-corpus: `rejected` is the next answer, in an order by digests, to another first line. So the
chosen answer is the one that fits, and not the better written one. BSD-3-Clause, Gunther Cox.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

NAME = "chat_preferences"
PACKAGE = "chatterbot-corpus==1.3.3"
SHA256 = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
FILES = {"preferences.jsonl": "3631b4920f6ddd414041be10b245f854618e50435168458854f9e69e90bcbc50"}


def make(archive: Path, folder: Path) -> None:
    import yaml

    spoken: dict[str, str] = {}
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            if "/data/english/" in name and name.endswith(".yml"):
                for lines in yaml.safe_load(wheel.read(name))["conversations"]:
                    if len(lines) > 1 and all(isinstance(line, str) and line.strip() for line in lines[:2]):
                        spoken.setdefault(*lines[:2])
    pairs = sorted(spoken.items(), key=lambda pair: hashlib.sha256("\0".join(pair).encode()).digest())
    rows = []
    for place, (prompt, chosen) in enumerate(pairs):
        others = (answer for _, answer in pairs[place + 1 :] + pairs[:place])
        rejected = next(answer for answer in others if answer != chosen)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
