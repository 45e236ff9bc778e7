"""From a model reference to a local folder that transformers' `from_pretrained` loads, and to its licence."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raybm.core.errors import NotFound, Unsupported, UserError
from raybm.models import gguf, packages
from raybm.models.cache import once

if TYPE_CHECKING:
    from raybm.core.storage import Storage

# Weights in safetensors, configuration, tokenizer, card and licence, of the repository's top folder; never code, never pickles.
_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_UNWANTED = ("*/*", "consolidated*", "*.onnx*")
_POOLING = ("[0-9]_Pooling/config.json",)  # of sentence-transformers: how token vectors become one
_DESCRIBING = ("config.json", "model.safetensors.index.json", "signature.json", "version.json")
HUB_TIMEOUT_S = 10.0
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SPDX = {
    name.lower(): name
    for name in ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "GPL-3.0", "Unlicense")
}


def resolve(ref: str, storage: Storage | None = None) -> Path:
    """The model's folder (config.json, *.safetensors, tokenizer files), downloaded or converted once where it has to be.

    `storage` is where `registry:` looks. Raises NotFound, Unsupported (`scratch:`, pickled weights), UserError, StorageError,
    DeadlineExceeded.
    """
    scheme, _, rest = ref.partition(":")
    if scheme == "hub":
        folder = _hub(ref, rest)
    elif scheme == "file":
        folder = _gguf_folder(path) if (path := Path(rest).expanduser()).suffix == ".gguf" else path.absolute()
    elif scheme == "s3":
        folder = _s3(ref)
    elif scheme == "package":
        folder = _gguf_folder(path, packages.version(rest)) if (path := packages.find(rest)).suffix == ".gguf" else path
    elif scheme == "registry":
        folder = _registry(ref, rest, storage)
    elif scheme == "scratch":
        raise Unsupported("a model from scratch has no folder.", where=ref, remedy="Build it from `model.config`.")
    else:
        raise UserError(f"{scheme!r} is no kind of reference.", where=ref, remedy="Use hub:, file:, s3:, package: or registry:.")
    with _looking(ref):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else None
    _check_files(names, ref)
    return folder


@contextmanager
def _looking(where: str) -> Iterator[None]:
    """OSError → NotFound: one may not look there."""
    try:
        yield
    except OSError as error:
        raise NotFound(f"cannot be looked at: {error.strerror}.", where=where, remedy="See who may read it.") from None


def resolve_adapter(ref: str) -> Path:
    """The folder of low-rank adapters as peft saves them (adapter_config.json, adapter_model.safetensors), downloaded once where it has to
    be. Raises NotFound."""
    scheme, _, rest = ref.partition(":")
    folder = _hub(ref, rest) if scheme == "hub" else Path(rest).expanduser().absolute()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with _looking(ref):
            if not (folder / name).is_file():
                raise NotFound(f"there is no {name}.", where=ref, remedy="Give the folder of an adapter that peft saved.")
    return folder


def pinned(ref: str, storage: Storage) -> str:
    """The reference with what can move replaced by what it points to now: a registry alias by its version, a branch of the hub by its
    commit. Others as they are. Raises NotFound."""
    from raybm.core.registry import Registry

    scheme, _, rest = ref.partition(":")
    name, at, which = rest.partition("@")
    if scheme == "registry" and at:
        return f"registry:{name}@{Registry(storage).get(name, which).number}"
    if scheme == "hub" and not re.fullmatch(r"[0-9a-f]{40}", which):
        return f"hub:{name}@{_hub_commit(ref, name, which)}"
    return ref


def fingerprint(ref: str) -> str:
    """What a (pinned) reference means now, where its text does not say: a package's version, a folder's files. Fetches and converts
    nothing. Raises NotFound, Unsupported, StorageError."""
    scheme, _, rest = ref.partition(":")
    if scheme == "package":
        return packages.version(rest)
    if scheme == "s3":
        return _s3_state(ref)[1]
    if scheme != "file":
        return ""
    path = Path(rest).expanduser()
    if path.suffix == ".gguf":
        return _gguf_name(path)
    folder = resolve(ref)
    with _looking(ref):
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        return _digest([f"{each.name} {each.stat().st_size} {each.stat().st_mtime_ns}" for each in files])


def license_of(ref: str, storage: Storage | None = None) -> str | None:
    """SPDX name of the model's licence: from its card, else from the package that it came in. None where nobody says, for `scratch:`,
    and for `registry:` without a storage. Raises what `resolve` raises."""
    scheme, _, rest = ref.partition(":")
    if scheme == "scratch" or (scheme == "registry" and storage is None):
        return None
    card = resolve(ref, storage) / "README.md"
    name = None
    if card.exists():
        front = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        found = re.search(r"^license:\s*[\"']?([^\s\"']+)", front, re.MULTILINE) if front.startswith("---") else None
        name = found[1] if found else None
    if name is None and scheme == "package":
        name = packages.license_name(rest)
    return _SPDX.get(name.lower(), name) if name else None


def license_file(ref: str, folder: Path) -> Path | None:
    """The licence text that goes with the weights in `folder` (which `resolve(ref)` gave), or None."""
    beside = sorted(path for path in folder.glob("LICENSE*") if path.is_file())
    if beside:
        return beside[0]
    scheme, _, rest = ref.partition(":")
    return packages.license_file(rest) if scheme == "package" else None


def _check_files(names: Iterable[str] | None, ref: str) -> None:
    """Raises unless there is a config and safetensors weights among a folder's file names."""
    if names is None:
        raise NotFound("there is no such folder.", where=ref, remedy="Give the folder of a transformers model.")
    files = [Path(name) for name in names]
    if any(file.suffix == ".safetensors" for file in files):
        if any(file.name == "config.json" for file in files):
            return
        raise NotFound("the folder has weights but no config.json.", where=ref, remedy="Save the model with save_pretrained.")
    if any(file.match(pattern) for file in files for pattern in _PICKLED):
        raise Unsupported(
            "the weights are pickled, and loading a pickle runs whatever code it holds.",
            where=ref,
            remedy="Convert them where you trust them: from_pretrained(...).save_pretrained(..., safe_serialization=True).",
        )
    raise NotFound(
        "there are no *.safetensors weights.",
        where=ref,
        remedy="raybm loads safetensors only (on the hub, see the model's other revisions).",
    )


def _hub(ref: str, rest: str) -> Path:
    """Through huggingface_hub's own cache, token (HF_TOKEN) and offline switch (HF_HUB_OFFLINE)."""
    from huggingface_hub import snapshot_download

    name, _, revision = rest.partition("@")
    with _hub_errors(ref, name, revision):
        folder = snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
        if (Path(folder) / "modules.json").exists():
            snapshot_download(name, revision=revision or None, allow_patterns=list(_POOLING))
        return Path(folder)


def _hub_commit(ref: str, name: str, revision: str) -> str:
    """The commit that a branch or tag points to; without a network, the one that was fetched last."""
    from huggingface_hub import HfApi, errors

    with _hub_errors(ref, name, revision):
        try:
            return str(HfApi().model_info(name, revision=revision or None, timeout=HUB_TIMEOUT_S).sha)
        except errors.HfHubHTTPError:
            raise
        except (errors.OfflineModeIsEnabled, errors.HTTPError):
            return _hub(ref, f"{name}@{revision}").name


@contextmanager
def _hub_errors(ref: str, name: str, revision: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        remedy = f"Accept the terms at https://huggingface.co/{name} and set HF_TOKEN."
        raise NotFound("the model is gated and this account has no access.", where=ref, remedy=remedy) from None
    except errors.RevisionNotFoundError:
        raise NotFound(f"the model has no revision {revision!r}.", where=ref, remedy="Give a branch, a tag or a commit.") from None
    except errors.RepositoryNotFoundError:
        raise NotFound(
            "the hub has no such model, or it is private.", where=ref, remedy="Check the name; for a private one set HF_TOKEN."
        ) from None
    except errors.HFValidationError:
        raise UserError("this is no name of a model.", where=ref, remedy="Write hub:org/name or hub:org/name@revision.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        remedy = "Check the network (and HF_HUB_OFFLINE), or fetch the model where there is one and use file:."
        raise NotFound("the hub cannot be reached and the model is not in the local cache.", where=ref, remedy=remedy) from None
    except (errors.HTTPError, OSError) as error:  # broken connections and refusals in mid-download; the disk
        raise NotFound(
            f"the hub's answer failed: {type(error).__name__}.", where=ref, remedy="Try again; what was fetched is kept."
        ) from error


def _s3(ref: str) -> Path:
    """Downloaded once for each state of the folder."""
    remote, name = _s3_state(ref)
    return once(name, lambda folder: remote.download("", folder))


def _s3_state(ref: str) -> tuple[Storage, str]:
    """The folder, and a name for its state: a digest of its file names, their bytes in all and the tags of the files that describe
    it. Weights overwritten by others of the same size, with all of these unchanged, are not noticed."""
    from raybm.core.storage import open_storage

    remote = open_storage(ref)
    keys = remote.keys()
    if not keys:
        raise NotFound("there is nothing below this prefix.", where=ref, remedy="Check bucket and prefix.")
    _check_files([key for key in keys if "/" not in key], ref)
    state = [ref, *keys, str(remote.size())]
    state += [remote.read_tagged(key)[1] for key in keys if key in _DESCRIBING]
    return remote, f"s3-{_slug(ref.rstrip('/').rpartition('/')[2])}-{_digest(state)}"


def _registry(ref: str, rest: str, storage: Storage | None) -> Path:
    from raybm.core.registry import Registry

    if storage is None:
        raise UserError("no storage is given whose registry holds it.", where=ref, remedy="Give the job's or the server's `storage:`.")
    name, _, which = rest.partition("@")
    if not which:
        raise UserError("which version?", where=ref, remedy=f"Write registry:{name}@prod (an alias) or registry:{name}@1 (a version).")
    registry = Registry(storage)
    folder: Path = registry.folder(registry.get(name, which))
    return folder


def _gguf_folder(file: Path, source_version: str = "") -> Path:
    """The conversion of a GGUF file."""
    return once(_gguf_name(file, source_version), lambda folder: gguf.convert(file, folder))


def _gguf_name(file: Path, source_version: str = "") -> str:
    """A changed file, an upgraded package or another transformers is converted anew."""
    from importlib.metadata import version

    with _looking(str(file)):
        if not file.is_file():
            raise NotFound("there is no such file.", where=str(file), remedy="Give the path of a .gguf file.")
        status = file.stat()
    state = [str(file.resolve()), str(status.st_size), str(status.st_mtime_ns), source_version, version("transformers"), _CONVERSION]
    return f"gguf-{_slug(file.stem)}-{_digest(state)}"


_CONVERSION = "1"  # raised when gguf.convert writes something else for the same file


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
