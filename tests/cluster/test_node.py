"""cluster/node.sh with a stand-in for Ray: the node comes back, and a second call replaces the first."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/node.sh"
RAY = """#!/usr/bin/env bash
[ "$1" = stop ] && exit 0
echo "$@" >>"$RAY_LOG"
[ "$(wc -l <"$RAY_LOG")" -ge 2 ] && exec sleep 60
exit 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "ray").chmod(0o755)
    text = SCRIPT.read_text()
    assert "/tmp/raybm-node." in text
    (tmp_path / "node.sh").write_text(text.replace("/tmp/raybm-node.", f"{tmp_path}/raybm-node."))
    (tmp_path / "node.sh").chmod(0o755)
    yield tmp_path
    os.killpg(int((tmp_path / "raybm-node.pid").read_text()), signal.SIGKILL)


def test_starts_again_what_ended_and_replaces_an_earlier_call(folder: Path) -> None:
    def run(*arguments: str) -> int:
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RAY_LOG": str(folder / "log")}
        subprocess.run([folder / "node.sh", "ray", "start", *arguments], env=environment, check=True, timeout=20)
        return int((folder / "raybm-node.pid").read_text())

    def lines(count: int) -> list[str]:
        deadline = time.monotonic() + 20
        while not (folder / "log").exists() or len(found := (folder / "log").read_text().splitlines()) < count:
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.05)
        return found

    first = run("--head")
    assert lines(2) == ["start --head --block --disable-usage-stats"] * 2
    second = run("--address=h:1")
    assert lines(3)[2] == "start --address=h:1 --block --disable-usage-stats"
    assert first != second
    deadline = time.monotonic() + 20
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(first).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the first one still runs"
            time.sleep(0.05)
