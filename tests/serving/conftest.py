"""Where the gateway's files and batches stand in tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybm.core.storage import LocalStorage, Storage, open_storage


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return LocalStorage(tmp_path)
    return open_storage(request.getfixturevalue("s3")).at(tmp_path.name)
