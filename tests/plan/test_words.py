from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raybm import plan
from raybm.cli import app
from raybm.core.errors import NotFound, UserError
from raybm.core.storage import open_storage
from raybm.plan.units import counted, duration
from tests.plan.jobs import job, language_model, write_model


def test_disk_is_rows_checkpoints_model_and_published_copy(tmp_path: Path) -> None:
    from raybm.plan.files import disk

    made = disk(job(tmp_path, publish={}), 340, 4)
    assert (made.sources, made.model, made.published, made.checkpoint) == (2800, 340 * 4, 340 * 4, 340 * 16)
    assert made.total == 5600 + 3 * 340 * 16 + 2 * 340 * 4
    assert disk(job(tmp_path, publish={}, train={"ema": 0.9}), 340, 4).checkpoint == 340 * (16 + 4)


def test_the_plan_in_words_needs_no_torch(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(job(tmp_path).canonical()))
    program = (
        "import json, sys; from raybm import plan; from raybm.spec import JobSpec;"
        "print('\\n'.join(plan.lines(JobSpec.parse(json.load(open(sys.argv[1])))))); assert not {'torch', 'ray'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(spec)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    model, memory, disk = done.stdout.splitlines()
    assert model == f"model   340 parameters (file:{tmp_path / 'model'})"
    assert "on each of 2 ranks" in memory and "16 rows of 16 tokens" in memory
    assert "3 checkpoints (last, best, next) of 5.4 kB" in disk and "free" in disk


def test_what_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent = job(tmp_path, model={"ref": "hub:nobody/nothing"})
    (said,) = plan.lines(absent)
    assert "not on this machine yet" in said
    with pytest.raises(NotFound, match="scratch:MODEL_TYPE"):
        plan.plan(absent, open_storage(absent.storage))
    with pytest.raises(NotFound):
        plan.lines(job(tmp_path, model={"ref": f"file:{tmp_path / 'absent'}"}))


def test_the_command_prints_a_table_or_one_json_object(tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(language_model(tmp_path).canonical()))
    command = ["plan", str(spec), "--workers", "64", "--device", "h100-80gb"]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "advice  train.zero.stage 0, micro_batch 1" in said and "64 on h100-80gb" in said and "←" in said
    made = json.loads(CliRunner().invoke(app, [*command, "--json", "--price", "1"], catch_exceptions=False).output)
    assert (made["workers"], made["global_batch"], made["counted"]) == (64, 64, True)
    assert [(option["stage"], option["offload"]) for option in made["options"]][:4] == [(stage, "none") for stage in range(4)]
    first = made["options"][0]
    assert first["memory"]["total"] > 0 and first["run"]["usd"] > 0 and first["communication_bytes"] == 8 * made["shape"]["parameters"]


def test_an_unknown_device(tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(language_model(tmp_path).canonical()))
    with pytest.raises(UserError, match="h100-80gb"):
        CliRunner().invoke(app, ["plan", str(spec), "--device", "abacus"], catch_exceptions=False)


def test_numbers_in_words() -> None:
    assert [plan.size(n) for n in (0, 999, 1234, 269_000_000, 7_500_000_000)] == ["0 bytes", "999 bytes", "1.2 kB", "269 MB", "7.5 GB"]
    assert [duration(n) for n in (0.0012, 75, 7300, 200_000)] == ["1.2 ms", "75 s", "122 min", "56 h"]
    assert counted(2_851_598_336) == "2.9 billion"
