"""Every job that comes with raybm is a valid spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybm.core.spec import load
from raybm.spec import JobSpec
from raybm.sweep import check

JOBS = sorted((Path(__file__).parent.parent / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_is_valid(path: Path) -> None:
    job = load(JobSpec, path)
    assert job.name == path.stem
    if job.sweep is not None:
        check(job)


def test_the_jobs_are_there() -> None:
    assert {"sentiment_minilm", "chat_smollm2", "pretrain_tiny", "smoke"} <= {path.stem for path in JOBS}
