"""cluster/Dockerfile: what can be known of it without building it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster/Dockerfile").read_text()
INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}


def steps() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#")))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def test_instructions_parse() -> None:
    assert {name for name, _ in steps()} <= INSTRUCTIONS
    assert steps()[0][0] == "FROM" and steps()[-1][0] == "CMD"


def test_runs_as_nobody_special_and_holds_no_secret() -> None:
    users = [argument for name, argument in steps() if name == "USER"]
    assert users == ["raybm"]
    assert ("RUN", "python -m raybm.ops") in steps()[[name for name, _ in steps()].index("USER") :]
    assert not re.search(r"(TOKEN|SECRET|PASSWORD|KEY)\s*=", TEXT)


def test_copies_what_there_is_and_what_the_context_lets_through() -> None:
    allowed = {line[1:] for line in (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, argument in steps():
        if name == "COPY":
            for source in [part for part in argument.split() if not part.startswith("--")][:-1]:
                assert (ROOT / source).exists() and source in allowed, source


def test_same_python_torch_and_ray_as_the_rest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)-slim", TEXT, re.M)
    assert project["requires-python"] == f">={version}"
    pins = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^\s;#]+)", (ROOT / "constraints.txt").read_text(), re.M))
    (ray,) = (requirement for requirement in project["dependencies"] if requirement.startswith("ray["))
    assert re.search(r">=([\d.]+),", ray)[1] == ".".join(pins["ray"].split(".")[:2])  # type: ignore[index]
    assert "torch" in pins
    assert all("-c constraints.txt" in part for name, run in steps() if name == "RUN" for part in run.split("&&") if "pip install" in part)
    tags = re.findall(r"-t registry\.example\.com/raybm:(\S+)", TEXT)
    assert tags == [f"{project['version']}-cpu", f"{project['version']}-cuda"]
