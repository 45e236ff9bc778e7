"""What functions do, and the functions: the first paragraph of a docstring of SymPy, and the name and arguments of what it describes.

Public functions and methods with a docstring, without the tests; each sentence and each function once.
BSD-3-Clause, Copyright (c) 2006-2023 SymPy Development Team.
"""

from __future__ import annotations

import ast
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

NAME = "sympy_functions"
PACKAGE = "sympy==1.14.0"
SHA256 = "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"
FILES = {"functions.jsonl": "82336fd663de732fd4b7dd36ee1b481f4b04fbf888ece276f6070bdc02586f4b"}


def make(archive: Path, folder: Path) -> None:
    found: dict[str, str] = {}
    known: set[str] = set()
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith("sympy/") and name.endswith(".py") and "/tests/" not in name:
                for described, function in functions(wheel.read(name).decode()):
                    if described not in found and function not in known:
                        found[described] = function
                        known.add(function)
    lines = [json.dumps({"anchor": described, "positive": function}, ensure_ascii=False) for described, function in found.items()]
    (folder / "functions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def functions(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (docstring := ast.get_docstring(node)):
            arguments = ", ".join(argument.arg for argument in node.args.args if argument.arg not in ("self", "cls"))
            yield " ".join(docstring.split("\n\n")[0].split()), f"{node.name}({arguments})"
