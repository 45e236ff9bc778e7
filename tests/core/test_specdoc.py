from __future__ import annotations

import jsonschema
import pytest

from raybm import docs_spec
from raybm.core.spec import Spec
from raybm.core.specdoc import json_schema, markdown
from raybm.spec import JobSpec, ServeConfig

JOB = {
    "name": "reviews",
    "task": {"kind": "text_classification"},
    "model": {"ref": "package:minilm"},
    "data": {"sources": [{"kind": "tsv", "path": "a.tsv", "columns": {"text": 1, "label": "stars"}}]},
    "publish": {"gate": {"macro_f1": ">= 0.8"}},
}


def test_the_page_in_docs_is_current() -> None:
    assert docs_spec.PAGE.read_text(encoding="utf-8") == docs_spec.text(), "run `python -m raybm.docs_spec`"


def test_every_key_has_a_meaning() -> None:
    assert not [line for line in docs_spec.text().splitlines() if line.endswith("|  |")]


def test_every_link_leads_to_a_heading() -> None:
    lines = docs_spec.text().splitlines()
    headings = [line.lstrip("# ").lower() for line in lines if line.startswith("#")]
    anchors = {"".join(c for c in heading.replace(" ", "-") if c.isalnum() or c in "-_") for heading in headings}
    links = {part.partition(")")[0] for line in lines for part in line.split("](#")[1:]}
    assert links and links <= anchors


def test_types_are_said_in_words_and_members_by_kind() -> None:
    page = markdown(JobSpec, "Job")
    for line in (
        "| `seed` | whole number ≥ 0 | `17` |",
        "| `warmup` | number ≥ 0 and < 1 | `0.06` |",
        "| `micro_batch` | whole number > 0 or null | none |",
        "| `labels` | list of (text or null) | **required** |",
        "| `betas` | list of 2: number ≥ 0 and < 1 | `[0.9, 0.999]` |",
        "| `metric` | `loss` or `accuracy` | `loss` |",
        "| `gate` | mapping of text to text | `{}` |",
        "| `steps` | [`data.steps[]`](#datasteps) | `normalize`, `exact_dedup` |",
        '| `delimiter` | text | `"\\t"` |',
        "#### `kind: causal_lm`",
    ):
        assert line in page, line
    assert page.count("| `path` |") == 1, "what the readers share stands once"


@pytest.mark.parametrize("cls", [JobSpec, ServeConfig])
def test_the_json_schema_is_one(cls: type[Spec]) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(cls))


def test_the_json_schema_takes_what_the_class_takes() -> None:
    validator = jsonschema.Draft202012Validator(json_schema(JobSpec))
    validator.validate(JOB)
    validator.validate(JobSpec.parse(JOB).canonical())
    for wrong in ({"seeed": 1}, {"task": {"kind": "poetry"}}, {"train": {"zero": {"stage": 4}}}):
        assert list(validator.iter_errors(JOB | wrong)), wrong
    assert json_schema(JobSpec)["properties"]["storage"]["description"].startswith("Where runs, artifacts")
