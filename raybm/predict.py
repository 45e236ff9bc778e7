"""`raybm predict`: a model over a whole file, offline, with Ray Data. What the rows need and what comes out, the model's signature says."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybm.core.errors import Unsupported, UserError
from raybm.core.signature import Signature
from raybm.core.storage import Storage
from raybm.data.delimited import Csv, Tsv
from raybm.data.execution import batches, from_items
from raybm.data.files import File, expand
from raybm.data.frame import schema
from raybm.data.images import Images
from raybm.data.jsonl import Jsonl
from raybm.data.reading import Facts, Wanted, frames
from raybm.data.source import Source
from raybm.data.text import Text
from raybm.engines.offline import generated, request
from raybm.engines.transformers.spec import Transformers

if TYPE_CHECKING:
    import pyarrow as pa


logger = logging.getLogger(__name__)

READERS: dict[str, type[Source]] = {".jsonl": Jsonl, ".ndjson": Jsonl, ".json": Jsonl, ".csv": Csv, ".tsv": Tsv, ".txt": Text}
READERS |= dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"), Images)
BLOCK_CHARS = 1 << 20
"""Text that is read, predicted and written as one block."""


def predict(
    ref: str,
    file: Path | str,
    out: Path,
    storage: Storage,
    batch: int = 64,
    columns: Mapping[str, str] | None = None,
    max_tokens: int = 256,
) -> int:
    """Every row of `file` (a path, a glob, s3://…) with what the model makes of it, in order, to `out`: JSON Lines, or Parquet by
    its extension, written whole or not at all. Returns how many rows.

    `columns`: standard name (text, text_pair, messages, prompt) → the file's; other names are carried along. Outputs are named
    `predicted_…`. Generation is greedy, up to `max_tokens`. Rows that cannot be used go to `out`.bad.jsonl with file, line
    and reason. Ray must be running. Raises NotFound, Unsupported, DataError.
    """
    from raybm.models.references import resolve
    from raybm.models.signature import infer_signature

    _check_target(out)
    signature = infer_signature(resolve(ref, storage))
    source = _source(str(file), signature, columns or {})
    wanted = Wanted(groups=signature.groups(), extra=(*source.columns, *_optional(signature), "label"))
    files = expand(source.path)
    next(frames(source, 0, 0, files[0], wanted, 1), None)  # missing columns are told before anything starts
    data = from_items(list(range(len(files))))
    data.context.execution_options.preserve_order = True
    data = data.map_batches(
        _read, fn_kwargs={"source": source, "wanted": wanted, "files": files}, batch_size=None, batch_format="pyarrow", num_cpus=0.5
    ).map_batches(Predictor, fn_constructor_args=(ref, storage, batch, max_tokens), batch_size=1, batch_format="pyarrow", **_placement())
    rows = (row for table in batches(data, "predict") for part in table.column("rows").to_pylist() for row in json.loads(part))
    return _write(rows, out, signature, wanted.columns)


def _optional(signature: Signature) -> tuple[str, ...]:
    """What a row may have beside what it needs: classifiers and regressors of texts read pairs."""
    paired = signature.problem in ("text_classification", "regression") and signature.inputs == ("text",)
    return ("text_pair",) if paired else ()


def _check_target(out: Path) -> None:
    """Before anything is computed. Raises UserError."""
    if str(out).startswith("s3:/"):
        raise UserError("predictions are written to files here.", where="--out", remedy="Give a path, and copy the file.")
    if out.is_dir():
        raise UserError("is a folder.", where=f"--out {out}", remedy=f"Give a file, such as {out / 'predictions.jsonl'}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}.", where=f"--out {out}", remedy="Give another place.") from None


def _source(path: str, signature: Signature, columns: Mapping[str, str]) -> Source:
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    if suffix not in READERS:
        raise Unsupported(
            f"{suffix or 'a file without an extension'} is no format that is read.", where=path, remedy=f"Use {', '.join(READERS)}."
        )
    settings: dict[str, Any] = {"path": path, "columns": dict(columns)}
    if READERS[suffix] is Text:
        settings["unit"] = "line"
        if "prompt" in signature.inputs:
            settings["columns"] = {"prompt": "text", **columns}
    return READERS[suffix].parse(settings, path)


def _placement() -> dict[str, Any]:
    """An actor a GPU, or else an actor a node with all of its CPUs but the half that reads."""
    import ray
    import ray.data

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        return {"num_gpus": 1, "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=gpus)}
    cpus = min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1)
    return {"num_cpus": max(0.5, cpus - 0.5), "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=len(nodes))}


def _read(table: pa.Table, source: Source, wanted: Wanted, files: Sequence[File]) -> Iterator[dict[str, list[str]]]:
    """Numbers of files → blocks of rows as JSON."""
    for number in map(int, table.column("item").to_pylist()):
        for part in frames(source, 0, number, files[number], wanted, BLOCK_CHARS):
            if not isinstance(part, Facts):
                records = part[[*wanted.columns, "_file", "_line", "_bad"]].to_dict("records")
                yield _as_one([{name: value for name, value in record.items() if value is not None} for record in records])


def _as_one(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """A table of one row: what is yielded goes on at once, as one block."""
    return {"rows": [json.dumps(rows)]}


class Predictor:
    """In the actor: the engine, and rows → rows with `predicted_…`, or with `_bad`."""

    def __init__(self, ref: str, storage: Storage, batch: int, max_tokens: int) -> None:
        self.ref, self.storage, self.batch, self.max_tokens = ref, storage, batch, max_tokens

    def __call__(self, table: pa.Table) -> Iterator[dict[str, list[str]]]:
        for rows in table.column("rows").to_pylist():
            yield from map(_as_one, self._predicted(json.loads(rows)))

    @cached_property
    def engine(self) -> Any:
        import ray
        import torch
        from transformers import logging as transformers_logging

        from raybm.models.references import resolve

        transformers_logging.disable_progress_bar()
        given = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, min(math.ceil(given), os.cpu_count() or 1)))
        return Transformers(max_batch=self.batch, max_waiting=2 * self.batch).build(resolve(self.ref, self.storage))

    def _predicted(self, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """The rows in their order, in parts."""
        protocols = self.engine.signature.protocols
        if "generates" in protocols:
            yield from self._generated(rows)
            return
        for start in range(0, len(rows), self.batch * 16):  # several batches, for texts of like length to meet in one
            part = rows[start : start + self.batch * 16]
            usable = [row for row in part if not row["_bad"] and _needs(row, self.engine.signature.groups())]
            if "predicts" in protocols:
                usable, made = self._answered(usable)
            else:
                made = [{"embedding": vector.tolist()} for vector in self.engine.embed([row["text"] for row in usable]).vectors]
            for row, answer in zip(usable, made, strict=True):
                row |= {f"predicted_{name}": value for name, value in answer.items() if name != "tokens"}
            yield part

    def _answered(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows that the engine could use, and its answers. The others (a picture that is damaged) get `_bad`."""
        signature = self.engine.signature
        asked = [{name: row.get(name) for name in signature.inputs} for row in rows]
        for one, row in zip(asked, rows, strict=True):
            one |= {name: row[name] for name in _optional(signature) if row.get(name)}  # a table has empty cells where there is none
        try:
            return rows, self.engine.predict(asked)
        except UserError as error:
            if len(rows) == 1:
                rows[0]["_bad"] = str(error)
                return [], []
            half = len(rows) // 2
            parts = [self._answered(part) for part in (rows[:half], rows[half:])]
            return [row for part, _ in parts for row in part], [answer for _, part in parts for answer in part]

    def _generated(self, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        usable = [row for row in rows if not row["_bad"] and _needs(row, self.engine.signature.groups())]
        answers = generated(self.engine, [request(row, self.max_tokens) for row in usable], 2 * self.batch)
        places = {id(row): answer for row, answer in zip(usable, answers, strict=True)}
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            for row in part:
                if (answer := places.get(id(row))) is not None:
                    try:
                        row["predicted_text"] = answer.result()
                    except UserError as error:  # longer than the context
                        row["_bad"] = str(error)
            yield part


def _needs(row: dict[str, Any], groups: Sequence[Sequence[str]]) -> bool:
    if any(all(row.get(name) is not None for name in group) for group in groups):
        return True
    row["_bad"] = f"no {' or '.join(' + '.join(group) for group in groups)}"
    return False


# ---- writing


def _write(rows: Iterator[dict[str, Any]], out: Path, signature: Signature, columns: Sequence[str]) -> int:
    """Streams the rows into files beside their places, then moves them there."""
    bad_file = out.with_name(f"{out.name}.bad.jsonl")
    parts = {path: path.with_name(f".{path.name}.partial") for path in (out, bad_file)}
    good = bad = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _Sink(parts[out], out.suffix == ".parquet", signature, columns) as sink, parts[bad_file].open("w", encoding="utf-8") as aside:
            for row in rows:
                file, line, reason = (row.pop(name) for name in ("_file", "_line", "_bad"))
                if reason:
                    bad += 1
                    aside.write(json.dumps({"file": file, "line": line, "reason": reason}, ensure_ascii=False) + "\n")
                else:
                    good += 1
                    sink.write(row)
        parts[out].replace(out)
        if bad:
            parts[bad_file].replace(bad_file)
            logger.warning("%d rows could not be used: see %s", bad, bad_file)
        else:
            bad_file.unlink(missing_ok=True)
    finally:
        for part in parts.values():
            with suppress(FileNotFoundError):
                part.unlink()
    return good


class _Sink:
    """JSON Lines, or Parquet with the columns that the signature promises."""

    def __init__(self, path: Path, parquet: bool, signature: Signature, columns: Sequence[str]) -> None:
        self.path, self.parquet, self.signature, self.columns = path, parquet, signature, columns

    def __enter__(self) -> _Sink:
        if self.parquet:
            import pyarrow.parquet as pq

            self.rows: list[dict[str, Any]] = []
            self.schema = _schema(self.signature, self.columns)
            self.writer = pq.ParquetWriter(self.path, self.schema)
        else:
            self.stream = self.path.open("w", encoding="utf-8")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        if not self.parquet:
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        self.rows.append(dict(row))
        if len(self.rows) == 10_000:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows.clear()

    def __exit__(self, *_: object) -> None:
        if self.parquet:
            self._flush()
            self.writer.close()
        else:
            self.stream.close()


def _schema(signature: Signature, columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    types: dict[str, Any] = {
        "label": pa.string(),
        "score": pa.float64(),
        "scores": pa.struct([(label, pa.float64()) for label in signature.labels]) if signature.labels else pa.list_(pa.float64()),
        "text": pa.string(),
        "labels": pa.list_(pa.string()),
        "value": pa.float64(),
        "tags": pa.list_(pa.string()),
        "answer": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "fills": pa.list_(pa.string()),
        "embedding": pa.list_(pa.float32()),
    }
    inputs = [field for field in schema(columns) if not field.name.startswith("_")]
    return pa.schema([*inputs, *((f"predicted_{name}", types[name]) for name in signature.outputs)])
