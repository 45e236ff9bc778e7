"""Publish: hold the evaluation against the gate, put together the folder that others get, make it a version, move the alias."""

from __future__ import annotations

import importlib.metadata
import json
import operator
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raybm.core.artifact import SOURCE, Artifact, code_digest
from raybm.core.context import Context
from raybm.core.errors import GateRefused, UserError
from raybm.core.registry import Registry, Version
from raybm.core.signature import Signature
from raybm.core.spec import Spec
from raybm.core.storage import files_under
from raybm.models.references import license_file, license_of, resolve
from raybm.models.spec import ModelSpec
from raybm.spec.job import PublishSpec

NAME = "publish"
INPUTS = ("prepare", "train", "evaluate")
CODE = ("core", "models", "stages/publish.py", "stages/model_card.md.j2", "stages/data_card.md.j2")
ON_RAY = False
outside = None
DOES: dict[str, tuple[str, str]] = {
    "text_classification": ("text-classification", "Puts a text into one of {labels} classes"),
    "regression": ("", "Predicts a number from {inputs}"),
    "token_classification": ("token-classification", "Marks the words of a text by {labels} tags"),
    "question_answering": ("question-answering", "Finds the answer to a question in a text"),
    "embedding": ("feature-extraction", "Turns a text into a vector; those of texts that belong together are close"),
    "masked_lm": ("fill-mask", "Fills gaps in a text"),
    "seq2seq": ("text2text-generation", "Writes a text from a text"),
    "image_classification": ("image-classification", "Puts a picture into one of {labels} classes"),
    "image_text": ("zero-shot-image-classification", "Turns pictures and texts into vectors; those that belong together are close"),
    "causal_lm": ("text-generation", "Continues a text, or answers in a conversation"),
}
"""A signature's problem → the hub's name for what such models do, and a sentence for people."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


class View(Spec):
    name: str
    model: ModelSpec
    publish: PublishSpec


def run(view: View, inputs: Mapping[str, Artifact], out: Artifact, context: Context) -> dict[str, Any]:
    evaluation = json.loads(inputs["evaluate"].storage.read("evaluation.json")) if "evaluate" in inputs else None
    check_gate(view.publish.gate, (evaluation or {}).get("test", {}))
    name = view.publish.name or view.name
    registry = Registry(context.storage)
    version = _published(registry, name, out.key)
    if version is None:
        with tempfile.TemporaryDirectory(prefix="raybm-publish-") as temp:  # links; what lies in the run's folder, the run uploads
            lineage = _assemble(view, name, evaluation, inputs, context, Path(temp))
            facts = {"artifact": out.key, "lineage": lineage, "evaluation": evaluation}
            version = registry.publish(name, Path(temp), facts)
    uri = registry.uri(name, version.number)
    context.progress(f"publish: {name}@{version.number} in {uri}")
    if alias := view.publish.alias:
        current = registry.alias(name, alias)
        registry.promote(name, alias, version.number, expect=current.version if current else None)
        context.progress(f"publish: {name}@{alias} is version {version.number}" + (f", was {current.version}" if current else ""))
    return {"name": name, "version": version.number, "uri": uri, "alias": alias}


def check_gate(gate: Mapping[str, str], scores: Mapping[str, Any]) -> None:
    """Raises GateRefused with every number that fell short."""
    short = []
    for metric, rule in gate.items():
        match = re.fullmatch(r"\s*([<>]=?)\s*(\S+)\s*", rule)
        if match is None:
            raise UserError(f"{rule!r} is no comparison.", where=f"publish.gate.{metric}", remedy='Write it as ">= 0.80".')
        value, limit = scores.get(metric), float(match[2])
        if not isinstance(value, int | float):
            short.append(f"{metric} was not measured, and must be {match[1]} {match[2]}")
        elif not COMPARISONS[match[1]](value, limit):
            short.append(f"{metric} {_distinct(value, limit)} is not {match[1]} {match[2]}")
    if short:
        raise GateRefused(
            f"{'; '.join(short)}.",
            where="publish.gate",
            remedy="Nothing was published. Improve the model, or change the gate and run again.",
        )


def _distinct(value: float, limit: float) -> str:
    """Four digits, or as many as it takes to tell 0.79999 from 0.80."""
    texts = (f"{value:.{digits}g}" for digits in range(4, 18))
    return next((text for text in texts if value == limit or float(text) != limit), repr(value))


def _published(registry: Registry, name: str, artifact: str) -> Version | None:
    """The version that an earlier try of this very stage made before it could write its record."""
    versions = (registry.get(name, number) for number in reversed(registry.versions(name)))
    return next((version for version in versions if version.facts.get("artifact") == artifact), None)


def _assemble(
    view: View, name: str, evaluation: dict[str, Any] | None, inputs: Mapping[str, Artifact], context: Context, folder: Path
) -> dict[str, Any]:
    """Fills `folder`; returns the lineage. Weights are linked, not copied: the upload follows links."""
    _link(inputs["train"].folder("model"), folder)
    _link(inputs["prepare"].folder("processor"), folder)
    signature = Signature.read(folder)
    if signature is None:
        raise UserError("the trained model has no signature.json.", where=inputs["train"].storage.uri, remedy="Train it again.")
    license = view.publish.license or license_of(view.model.ref, context.storage)
    dataset = context.records["prepare"].metrics
    lineage = _lineage(view, inputs, context)

    scratch = view.model.ref.startswith("scratch:")
    text = None if scratch else license_file(view.model.ref, resolve(view.model.ref, context.storage))
    note = f"{license or 'The licence is not stated.'}\n\nStarted from {view.model.ref}.\n"
    _write(folder / "LICENSE", text.read_text(encoding="utf-8", errors="replace") if text else note)
    _write(folder / "README.md", model_card(view, signature, license, evaluation, context))
    _write(folder / "DATA.md", _template("data_card.md.j2").render(name=name, data=dataset, job=context.job))
    for file, content in (("data.json", dataset), ("lineage.json", lineage), ("evaluation.json", evaluation)):
        if content is not None:
            _write(folder / file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return lineage


def model_card(view: View, signature: Signature, license: str | None, evaluation: dict[str, Any] | None, context: Context) -> str:
    """README.md, in the form that model hubs read."""
    data, train = context.records["prepare"].metrics, context.records["train"]
    scheme, _, rest = str(context.job["model"]["ref"]).partition(":")
    columns, metrics = _columns(evaluation)
    settings = {**context.job["train"], "workers": context.job["resources"]["workers"], "seed": context.job["seed"], **train.metrics}
    tag, does = DOES[signature.problem]
    if "labels" in signature.outputs:
        does = "Gives a text those that fit it of {labels} labels"
    card: str = _template("model_card.md.j2").render(
        name=view.publish.name or view.name,
        publish=view.publish,
        signature=signature,
        tag=tag,
        does=does.format(labels=len(signature.labels), inputs=", ".join(signature.inputs)),
        own=rest.startswith("raybm_"),
        license=license,
        evaluation=evaluation,
        columns=columns,
        metrics=metrics,
        compared=next((metric for metric in ("macro_f1", "f1", "rmse", "perplexity", "loss") if metric in metrics), ""),
        data=data,
        dropped=sum(data["dropped"].values()),
        job=context.job,
        made=train.started[:10],
        parameters=train.metrics.get("parameters"),
        training=[(key, json.dumps(value)) for key, value in settings.items() if value is not None],
        base={"ref": f"{scheme}:{rest}", "scratch": scheme == "scratch", "hub": rest.partition("@")[0] if scheme == "hub" else None},
    )
    return card


def _columns(evaluation: dict[str, Any] | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Columns of the evaluation table (the test split, if there is one, then every slice, each with its baseline), and its rows."""
    if evaluation is None:
        return [], []
    baseline = evaluation.get("baseline") or {}
    columns = []
    if "test" in evaluation:
        columns.append({"name": "test", "title": "test split", "scores": evaluation["test"], "baseline": baseline.get("test")})
    for slice_name, scores in (evaluation.get("slices") or {}).items():
        beside = (baseline.get("slices") or {}).get(slice_name)
        columns.append({"name": slice_name, "title": f"slice {slice_name}", "scores": scores, "baseline": beside})
    rows = dict.fromkeys(name for column in columns for name, value in column["scores"].items() if isinstance(value, int | float))
    return columns, list(rows)


def _lineage(view: View, inputs: Mapping[str, Artifact], context: Context) -> dict[str, Any]:
    """From what, by which code, with which packages."""
    scheme, _, rest = view.model.ref.partition(":")
    parent: dict[str, Any] = {"ref": view.model.ref}
    if scheme == "registry":
        model, _, version = rest.partition("@")
        parent["version"] = Registry(context.storage).get(model, version).number
    stages = {name: context.records[name] for name in inputs}
    return {
        "job": context.job_name,
        "parent": parent,
        "data": context.records["prepare"].metrics["sources"],
        "artifacts": {
            name: {"key": made.key, "code": made.code, "versions": made.versions, "started": made.started, "seconds": made.seconds}
            for name, made in stages.items()
        },
        "code": {"raybm": importlib.metadata.version("raybm"), "digest": code_digest((".",)), "revision": _revision()},
        "python": platform.python_version(),
        "packages": {each.name: each.version for each in sorted(importlib.metadata.distributions(), key=lambda each: each.name.lower())},
        "spec": dict(context.job),
    }


def _revision() -> str | None:
    """Git's name for raybm's source ("-dirty" with uncommitted changes), where it is a checkout."""
    command = ["git", "-C", str(SOURCE.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _link(source: Path, folder: Path) -> None:
    for file in files_under(source):
        if not (folder / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to((source / file).resolve())


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # never through a link into an artifact
    path.write_text(text, encoding="utf-8")


def _template(file: str) -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701  (Markdown)
    environment.filters["number"] = lambda value: f"{value:.4g}" if isinstance(value, int | float) else ""
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
    environment.filters["code"] = lambda value: f"`{value}`"
    return environment.get_template(file)
