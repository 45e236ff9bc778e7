"""DeepSpeed's shared-memory collectives for CPU ranks, compiled ahead.

The first DeepSpeed start on a CPU compiles `deepspeed_shm_comm` with g++ and ninja, one to two minutes in every rank's way.
`python -m raybm.ops` (part of `make setup`) does it once, into a folder named after the versions it was built for, so an upgrade
builds anew; afterwards a rank loads it in 0.05 s (measured).
Training processes call `use()` before they import DeepSpeed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from raybm.core.errors import DeadlineExceeded, NotFound, RaybmError

OP = "deepspeed_shm_comm"
_BUILD_TIMEOUT_S = 900.0
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
KEEPS_MEMORY = HUGE_PAGES | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""The environment of a rank or a replica on CPUs, from its process's start: torch asks for huge pages, and glibc keeps what a step frees
for the next one, large blocks and other threads' too, in the place of giving it back to the kernel, which clears each page before it
hands it out again (docs/decisions.md)."""


def extensions_dir() -> Path:
    """Where torch looks for compiled extensions: TORCH_EXTENSIONS_DIR, or a folder under ~/.raybm for this Python, torch and DeepSpeed."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given).expanduser()
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    built_for = f"{python}-torch{version('torch')}-deepspeed{version('deepspeed')}-{platform.machine()}"
    return Path("~/.raybm/torch_extensions").expanduser() / built_for


def is_built() -> bool:
    """Whether the op has been compiled and imported once here (the marker is written last)."""
    return (extensions_dir() / OP / "built").exists()


def environment() -> dict[str, str]:
    """The variables of a process that trains on CPUs. torch calls ninja by name, and one of another version compiles anew what is
    there: the one beside this Python stands first in PATH."""
    variables = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions_dir()), **HUGE_PAGES}
    beside, path = Path(sys.executable).parent, os.environ.get("PATH", os.defpath)
    if shutil.which("ninja") is None or shutil.which("ninja", path=str(beside)):
        variables["PATH"] = path if path.split(os.pathsep)[0] == str(beside) else f"{beside}{os.pathsep}{path}"
    return variables


def use(device: str = "cpu") -> None:
    """Set this process's variables for training on "cpu" or "cuda". Call it before DeepSpeed is imported."""
    if device == "cpu":
        os.environ.update(environment())
    elif given := os.environ.get("TORCH_CUDA_ARCH_LIST"):  # "9.0a", as some images set it, DeepSpeed 0.19 takes for a mistake
        os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(?<=\d)[af]", "", given)


def build_ops() -> Path:
    """Compile the op unless it is there already; returns `extensions_dir()`. Safe to call from two processes at once and
    after an interruption. Raises NotFound without a compiler, DeadlineExceeded, RaybmError when the compilation fails."""
    folder = extensions_dir()
    if sys.platform != "linux" or is_built():  # elsewhere DeepSpeed falls back to gloo by itself
        return folder
    use()
    for tool, remedy in (("g++", "Install it: apt-get install g++, or dnf install gcc-c++."), ("ninja", "Install it: pip install ninja.")):
        if shutil.which(tool) is None:
            raise NotFound(f"{tool} is not installed; DeepSpeed's CPU op cannot be compiled.", where=tool, remedy=remedy)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{OP}.lock", timeout=_BUILD_TIMEOUT_S):
            if not is_built():
                _compile(folder)
    except Timeout:
        what = f"another process has been building for {_BUILD_TIMEOUT_S:g} s."
        raise DeadlineExceeded(what, where=str(folder), remedy="End it, then try again.") from None
    return folder


def _compile(folder: Path) -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    shutil.rmtree(folder / OP, ignore_errors=True)  # what an interrupted build left, torch's lock file (waited for without end) included
    try:
        ShareMemCommBuilder().load(verbose=False)
    except (RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RaybmError(
            f"the compilation failed: {lines[-1]}", where=OP, remedy="Check that g++ compiles C++20 for this torch."
        ) from error
    (folder / OP / "built").touch()


def main() -> int:
    folder = extensions_dir()
    if is_built():
        print(f"DeepSpeed's CPU op is built: {folder}")  # noqa: T201
        return 0
    print(f"Building DeepSpeed's CPU op into {folder} (about two minutes, once) ...", flush=True)  # noqa: T201
    started = time.monotonic()
    try:
        build_ops()
    except RaybmError as error:
        print(f"raybm.ops: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(f"Built in {time.monotonic() - started:.0f} s.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
