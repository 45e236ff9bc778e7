"""JobSpec: the sections of a job in life-cycle order, and the rules that hold between them."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raybm.core.spec import Check, Spec
from raybm.data import SourceSpec, StepSpec
from raybm.data.exact_dedup import ExactDedup
from raybm.data.frame import STANDARD
from raybm.data.normalize import Normalize
from raybm.models.spec import ModelSpec
from raybm.search import Population
from raybm.spec.sweep import ENERGY, TRAINED, VALIDATED, SweepSpec
from raybm.spec.train import EarlyStopping, TrainSpec, ZeroSpec
from raybm.tasks import TaskSpec
from raybm.tracking import TrackerSpec


class Resources(Spec):
    """What the job asks of the cluster."""

    workers: PositiveInt = 2
    """Training ranks: processes that share the work of one step."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs of each rank; PyTorch gets as many threads."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs of each rank; 0 trains on CPUs."""
    accelerator_type: str | None = None
    """Ray's name of the accelerator, such as H100 or A100."""
    placement_timeout_s: PositiveFloat = 600.0
    """How long the job waits for its place (for nodes that the autoscaler starts) before it is refused."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("accelerator_type", "gpus_per_worker"),
            lambda kind, gpus: (f"{kind} is asked for with no GPU.", "Set gpus_per_worker.") if kind and not gpus else None,
        ),
    )


class Split(Spec):
    """Shares dealt out by the digest of a row's content: the same row always lands in the same split."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows that training is watched by: early stopping and the plateau schedule go by them."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows that only the evaluation sees."""
    by: tuple[str, ...] = ()
    """Columns that decide: rows that are equal in them land in the same split, such as the questions to one `context`, the captions of one
    `image`, the answers to one `prompt`. Default: all that a row says but its label."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("validation", "test"),
            lambda validation, test: (
                (f"validation and test take {validation + test:g} of the rows.", "Leave some for training.")
                if validation + test >= 1
                else None
            ),
        ),
    )


class DataSpec(Spec):
    """From files to cleaned, split, tokenised rows."""

    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    """The files, of any mix of formats."""
    steps: tuple[StepSpec, ...] = (Normalize(), ExactDedup())
    """Cleaning, in this order."""
    split: Split = Split()
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The job fails when more than this share of the rows cannot be used; fewer are kept aside in bad_rows.jsonl."""


LATENCY = "latency_ms"


class EvaluateSpec(Spec):
    """Scores on the test split (and on every `slice`). Where an engine answers, `latency_ms` is the time that a row takes which is asked
    alone, the median."""

    batch: PositiveInt = 64
    """Rows in one forward pass."""
    baseline: bool = True
    """Score a simple model on the same split too (for classification a linear one over TF-IDF), where the task has one."""
    max_tokens: PositiveInt = 128
    """Longest answer, in tokens, where answers are generated."""


def _comparison(rule: str) -> str:
    if not re.fullmatch(r"\s*(>=|<=|>|<)\s*-?\d+(\.\d+)?([eE][-+]?\d+)?\s*", rule):
        raise ValueError('should be a comparison with a number, such as ">= 0.80"')
    return rule


class PublishSpec(Spec):
    """What becomes of a model that passed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name in the registry. Default: the job's name."""
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] | None = None
    """Alias that is moved to the new version, such as `prod`."""
    gate: dict[str, Annotated[str, AfterValidator(_comparison)]] = {}
    """Metric of the test split → comparison, such as `{macro_f1: ">= 0.80"}`; all must hold."""
    license: str | None = None
    """SPDX name for the model card. Default: that of the model it started from, where known."""


class JobSpec(Spec):
    """One job: from raw data to a published model. Sections stand in life-cycle order; stages without a section do not run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Stands in the names of its runs, and of the published model unless `publish.name` says otherwise."""
    seed: NonNegativeInt = 17
    """Of everything that is drawn: the split, new weights, the order of the rows, dropout."""
    storage: str = "~/.raybm"
    """Where runs, artifacts and the registry live: a folder that all nodes see, or s3://bucket/prefix."""
    resources: Resources = Resources()
    tracking: tuple[TrackerSpec, ...] = ()
    """Experiment trackers that get the run's numbers, beside TensorBoard's files, which are always written."""
    task: TaskSpec
    """What is learned, from which columns."""
    model: ModelSpec
    data: DataSpec
    train: TrainSpec = TrainSpec()
    sweep: SweepSpec | None = None
    evaluate: EvaluateSpec | None = EvaluateSpec()
    publish: PublishSpec | None = None

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("train.global_batch", "train.global_tokens", "train.micro_batch", "train.micro_tokens", "resources.workers"),
            lambda *values: _batches(*values),
        ),
        Check(("train.micro_tokens", "model.max_length"), lambda *values: _micro_tokens(*values)),
        Check(("train.global_tokens", "model.max_length", "resources.workers", "task"), lambda *values: _global_tokens(*values)),
        Check(("model.tokenizer", "model.ref", "task"), lambda *values: _tokenizer(*values)),
        Check(("model.image", "model.ref", "task"), lambda *values: _image(*values)),
        Check(("model.ref", "task"), lambda *values: _reference(*values)),
        Check(("train.schedule", "data.split.validation", "data.sources"), lambda *values: _plateau(*values)),
        Check(("sweep.objectives", "task", "evaluate"), lambda *values: _objectives(*values)),
        Check(("sweep.objectives", "task", "data.split", "data.sources"), lambda *values: _scored(*values)),
        Check(
            ("sweep.scheduler", "train.early_stopping", "train.phases"),
            lambda scheduler, *set_already: (
                (
                    "a population trains all its members to the end, and writes train.phases.",
                    "Drop train.early_stopping and train.phases.",
                )
                if isinstance(scheduler, Population) and any(set_already)
                else None
            ),
        ),
        Check(
            ("sweep.objectives", "sweep.budget.energy_kwh", "train.energy"),
            lambda objectives, budget, measured: (
                ("the energy of the trials is not measured.", "Set train.energy: true.")
                if not measured and (budget or ENERGY in (objectives or ()))
                else None
            ),
        ),
        Check(("evaluate", "data.split.test", "data.sources"), lambda *values: _evaluated(*values)),
        Check(("publish.gate", "task", "evaluate", "data.split.test", "data.sources"), lambda *values: _gate(*values)),
        Check(("data.sources", "data.steps", "data.split.by", "task"), lambda *values: _columns(*values)),
        Check(("train.precision", "train.zero", "resources.gpus_per_worker"), lambda *values: _gpus(*values)),
        Check(("train.early_stopping", "task"), lambda *values: _stopping(*values)),
        Check(
            ("model.lora.quantize", "train.zero.stage"),
            lambda kind, stage: (
                (f"ZeRO stage 3 cannot shard {kind} weights.", "Use zero.stage 0, 1 or 2.") if kind and stage in (3, "auto") else None
            ),
        ),
        Check(
            ("train.zero.stage", "task"),
            lambda stage, task: (
                ("DeepSpeed 0.19 cannot shard the temperature of such a model, a single number.", "Use zero.stage 0, 1 or 2.")
                if stage == 3 and task.kind == "image_text"
                else None
            ),
        ),
        Check(
            ("sweep.scheduler", "train.zero.offload_optimizer"),
            lambda scheduler, place: (
                ("trials that pause could not go on: DeepSpeed 0.19 reads no optimiser back from nvme.", "Offload to cpu.")
                if scheduler and place == "nvme"
                else None
            ),
        ),
        Check(
            ("train.zero.secondary_partition", "task"),
            lambda partition, task: (
                ("DeepSpeed 0.19 makes a secondary partition for one model, and here are two, one of them the reference.", "Drop it.")
                if partition and task.kind == "preference"
                else None
            ),
        ),
        Check(("data.split.validation", "data.sources", "train.early_stopping"), lambda *values: _validation(*values)),
        Check(("storage",), lambda storage: _storage(storage)),
    )


def _batches(total: int, in_tokens: int | None, micro: int | None, tokens: int | None, workers: int) -> tuple[str, str] | None:
    if in_tokens is None and tokens is None and total % (workers * (micro or 1)):
        what = f"{total} samples cannot be dealt to {workers} workers" + (f" in micro-batches of {micro}." if micro else ".")
        unit = workers * (micro or 1)
        return what, f"Use a multiple of {unit}, such as {max(unit, round(total / unit) * unit)}."
    return None


def _micro_tokens(tokens: int | None, longest: int) -> tuple[str, str] | None:
    if tokens is not None and tokens < longest:
        return f"a row of {longest} tokens does not fit into {tokens}.", "Raise train.micro_tokens or lower model.max_length."
    return None


def _global_tokens(tokens: int | None, longest: int, workers: int, task: TaskSpec) -> tuple[str, str] | None:
    if tokens is None:
        return None
    if task.INPUT not in ("text", "image_text"):
        return f"{task.kind} has rows without tokens.", "Use train.global_batch."
    if tokens < longest * workers:
        return f"{workers} workers with a row of {longest} tokens each make more than {tokens}.", f"Use {longest * workers} or more."
    return None


def _tokenizer(tokenizer: object, ref: str, task: TaskSpec) -> tuple[str, str] | None:
    if tokenizer is None and ref.startswith("scratch:") and task.INPUT == "text":
        return "a model from scratch needs a tokenizer.", "Add `tokenizer: {train: bpe, vocab_size: 8000}`."
    return None


def _image(image: object, ref: str, task: TaskSpec) -> tuple[str, str] | None:
    takes = task.INPUT in ("image", "image_text")
    if image is None and takes and ref.startswith("scratch:"):
        return "a model from scratch does not say what pictures it takes.", "Add `image: {size: 224}`."
    return (f"{task.kind} has no pictures.", "Drop `model.image`.") if image is not None and not takes else None


def _reference(ref: str, task: TaskSpec) -> tuple[str, str] | None:
    if task.kind == "preference" and ref.startswith("scratch:"):
        return "preferences are learnt by a model that answers already.", "Start from one that was trained on conversations."
    return None


def _plateau(schedule: str, share: float, sources: tuple[SourceSpec, ...]) -> tuple[str, str] | None:
    return _needed("the plateau schedule", "validation", share, sources) if schedule == "plateau" else None


def _objectives(objectives: dict[str, str] | None, task: TaskSpec, evaluate: EvaluateSpec | None) -> tuple[str, str] | None:
    scores = [] if evaluate is None else [f"evaluate.{name}" for name in _reported(task)]
    known = [*VALIDATED, *TRAINED, *scores]
    unknown = [name for name in objectives or () if name not in known]
    if not unknown:
        return None
    if evaluate is None and unknown[0].startswith("evaluate."):
        return f"{unknown[0]} needs the evaluation.", "Add `evaluate: {}`."
    near = difflib.get_close_matches(unknown[0], known, n=1)
    return f"no stage reports {', '.join(unknown)}.", f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."


def _scored(objectives: dict[str, str] | None, task: TaskSpec, split: Split, sources: tuple[SourceSpec, ...]) -> tuple[str, str] | None:
    """Whether there are rows, and such a score, for the objectives."""
    if "validation.accuracy" in (objectives or ()) and not _counts(task):
        return f"{task.kind} has no accuracy.", "Use validation.loss."
    for name in objectives or ():
        kind = {"validation": "validation", "evaluate": "test"}.get(name.partition(".")[0])
        if kind and (missing := _needed(name, kind, getattr(split, kind), sources)):
            return missing
    return None


def _counts(task: TaskSpec) -> bool:
    """Whether something can be right or wrong."""
    return task.kind != "regression"


def _reported(task: TaskSpec) -> tuple[str, ...]:
    """What evaluation says of the test split."""
    return (*task.METRICS, *([LATENCY] if task.PREDICTS else []))


def _evaluated(evaluate: EvaluateSpec | None, share: float, sources: tuple[SourceSpec, ...]) -> tuple[str, str] | None:
    if evaluate is None or any(source.slice for source in sources) or not (missing := _needed("it", "test", share, sources)):
        return None
    what, remedy = missing
    return what, f"{remedy} Or set `evaluate: null`."


def _gate(
    gate: dict[str, str] | None, task: TaskSpec, evaluate: EvaluateSpec | None, share: float, sources: tuple[SourceSpec, ...]
) -> tuple[str, str] | None:
    if not gate:
        return None
    if evaluate is None:
        return "a gate needs the evaluation.", "Add `evaluate: {}` or drop the gate."
    if unknown := [name for name in gate if name not in _reported(task)]:
        return f"{task.kind} reports no {', '.join(unknown)}.", f"It reports {', '.join(_reported(task))}."
    return _needed("a gate", "test", share, sources)


def _columns(sources: tuple[SourceSpec, ...], steps: tuple[StepSpec, ...], by: tuple[str, ...], task: TaskSpec) -> tuple[str, str] | None:
    groups = task.columns()
    texts = [name for name in dict.fromkeys((*groups[0], *by)) if task.INPUT == "columns" and name in STANDARD and name != "label"]
    if texts:
        what = f"a table's column is called {', '.join(texts)}, as one of texts, by which rows would be told apart."
        return what, f"Map it to another name, as in `columns: {{my_{texts[0]}: {texts[0]}}}`."
    known = {name for group in groups for name in group} | {name for step in steps for name in step.needs()} | set(by)
    for source in sources:
        unread = [name for name in source.columns if name not in known]
        if unread:
            near = difflib.get_close_matches(unread[0], sorted(known), n=1)
            needed = " or ".join(" + ".join(group) for group in groups)
            return (
                f"{source.path} maps {', '.join(unread)}, which nothing reads; {task.kind} needs {needed}.",
                f"Did you mean {near[0]!r}?" if near else "Map what the task or a step needs.",
            )
    return None


def _gpus(precision: str, zero: ZeroSpec, gpus: float) -> tuple[str, str] | None:
    if gpus:
        return None
    if precision == "fp16":
        return "fp16 is for GPUs, and the workers have none.", "Use fp32 or bf16, or set resources.gpus_per_worker."
    if zero.offload_optimizer or zero.offload_parameters:
        return "there is no GPU to take anything off.", "Drop the offloading, or set resources.gpus_per_worker."
    if zero.quantized_weights or zero.quantized_gradients or zero.secondary_partition:
        return "ZeRO++ is for GPUs, and the workers have none.", "Drop it, or set resources.gpus_per_worker."
    return None


def _stopping(stopping: EarlyStopping | None, task: TaskSpec) -> tuple[str, str] | None:
    if stopping is not None and stopping.metric == "accuracy" and not _counts(task):
        return f"{task.kind} has no accuracy.", "Set train.early_stopping.metric: loss."
    return None


def _validation(share: float, sources: tuple[SourceSpec, ...], stopping: object) -> tuple[str, str] | None:
    return None if stopping is None else _needed("early stopping", "validation", share, sources)


def _needed(what: str, kind: str, share: float, sources: tuple[SourceSpec, ...]) -> tuple[str, str] | None:
    """Whether there will be such a split: rows that are dealt into it, or a source of its own. Where there
    are no sources they are wrong themselves, which is told."""
    if not sources or any(source.split == kind or (share and not source.split and not source.slice) for source in sources):
        return None
    return f"{what} needs a {kind} split.", f"Give it a share of rows that are dealt out, or a source with `split: {kind}`."


def _storage(storage: str) -> tuple[str, str] | None:
    if "://" in storage and not re.match(r"s3://[a-z0-9][a-z0-9.-]+(/|$)", storage):
        return f"{storage!r} is no storage.", "Use a folder, or s3://bucket/prefix."
    return None
