"""docs/spec.md, written from the spec classes: `python -m raybm.docs_spec` (a test says when that is due)."""

from __future__ import annotations

import sys
from pathlib import Path

from raybm.core.specdoc import markdown
from raybm.spec import JobSpec, ServeConfig

PAGE = Path(__file__).parent.parent / "docs" / "spec.md"
HEAD = """\
# Specs

Every key that raybm reads, written from the classes in `raybm/` by `python -m raybm.docs_spec`. YAML 1.2: `3e-5` is a number,
`no` is text. An unknown key is an error. `raybm schema job` and `raybm schema serve` print the same as JSON Schema, for editors.
`raybm run job.yaml --set train.lr=1e-4` changes one value (`data.sources[0].path=...` an item of a list).

- [A job](#a-job-raybm-run): `raybm run jobs/x.yaml`
- [A serve config](#a-serve-config-raybm-deploy): `raybm deploy serve_configs/x.yaml`
"""


def text() -> str:
    chapters = (markdown(JobSpec, "A job (`raybm run`)"), markdown(ServeConfig, "A serve config (`raybm deploy`)"))
    return "\n".join((HEAD, *chapters)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
