"""Pictures, and what a model wants of their pixels, by Pillow and numpy alone.

transformers' own image processors need torchvision, whose builds fit only the torch that they were made with, and come as one class a
model. What they do is the same everywhere: decode, resize, crop, normalise. The settings are read from and written to their
preprocessor_config.json, so that either side reads what the other saved.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybm.core.errors import UserError
from raybm.models.spec import ImageSpec, ModelInput

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from raybm.core.storage import Storage

FILE = "preprocessor_config.json"
MAX_PIXELS = 64_000_000
"""Of one image. A few kB can hold a picture that unpacks to gigabytes."""
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)  # of Pillow's decoders
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(data: bytes, channels: int) -> Image:
    """The picture (of an animation, the first), upright, grey for one channel and RGB for three. Raises UserError for what cannot be
    decoded, or has more than MAX_PIXELS."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:  # the header only
            if file.width * file.height > MAX_PIXELS:
                what = f"has {file.width} × {file.height} pixels."
                raise UserError(what, where="image", remedy=f"At most {MAX_PIXELS:,} are decoded: scale it down.")
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
            return upright.convert("L" if channels == 1 else "RGB")
    except Image.DecompressionBombError:
        raise UserError("has far too many pixels.", where="image", remedy=f"At most {MAX_PIXELS:,} are decoded: scale it down.") from None
    except UnidentifiedImageError:
        raise UserError("is no image of a known format.", where="image", remedy=f"Known: {', '.join(FORMATS)}.") from None
    except _BROKEN as error:
        what = f"cannot be decoded: {str(error).splitlines()[0] if str(error) else type(error).__name__}."
        raise UserError(what, where="image", remedy="Save it again.") from None


@dataclass(frozen=True)
class ImageProcessor:
    """Image files → pixels of one size, and pixels → what the model takes."""

    height: int
    width: int
    mean: tuple[float, ...]
    """Of each channel, of values from 0 to 1."""
    std: tuple[float, ...]
    shortest_edge: int | None = None
    """Scale the shorter side to this and cut out the middle. Default: squeeze the whole picture into height × width."""
    resample: int = _BILINEAR
    """Pillow's number of the filter."""

    @property
    def channels(self) -> int:
        return len(self.mean)

    def pixels(self, files: Sequence[bytes]) -> Pixels:
        """(files, channels, height, width). Raises UserError as `decode`."""
        made = np.empty((len(files), self.channels, self.height, self.width), np.uint8)
        for place, data in enumerate(files):
            picture = np.asarray(self._fitted(decode(data, self.channels)))
            made[place] = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
        return made

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Values from 0 to 1 (rows, channels, height, width) → zero mean and unit variance over the data that mean and std are of."""
        import torch

        shape = (1, self.channels, 1, 1)
        return (pixels - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)

    def __call__(self, files: Sequence[bytes]) -> torch.Tensor:
        """What the model takes: float32 (files, channels, height, width). Raises UserError as `decode`."""
        import torch

        return self.normalised(torch.from_numpy(self.pixels(files)).float() / 255)

    def _fitted(self, image: Image) -> Image:
        size = (self.width, self.height)
        if self.shortest_edge is None:
            return image if image.size == size else image.resize(size, self.resample)
        longest = MAX_PIXELS // self.shortest_edge  # a line of pixels scaled up would fill the memory: what would be cut off goes before
        share = self.shortest_edge / min(image.size)
        if max(image.size) * share > longest:
            kept = max(1, int(longest / share))
            left, top = max(0, (image.width - kept) // 2), max(0, (image.height - kept) // 2)
            image = image.crop((left, top, min(image.width, left + kept), min(image.height, top + kept)))
        scaled = image.resize((round(image.width * share), round(image.height * share)), self.resample)
        left, top = (scaled.width - self.width) // 2, (scaled.height - self.height) // 2
        return scaled.crop((left, top, left + self.width, top + self.height))

    def save_pretrained(self, folder: Path | str) -> None:
        size = {"height": self.height, "width": self.width}
        settings: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor" if self.shortest_edge is None else "CLIPImageProcessor",
            "do_convert_rgb": self.channels == 3,
            "do_resize": True,
            "size": size if self.shortest_edge is None else {"shortest_edge": self.shortest_edge},
            "resample": self.resample,
            "do_center_crop": self.shortest_edge is not None,
            **({} if self.shortest_edge is None else {"crop_size": size}),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        (Path(folder) / FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path | str, **_: object) -> ImageProcessor:
        """From the folder's preprocessor_config.json. Raises UserError where there is none, or one that it cannot follow."""
        path = Path(folder) / FILE
        if not path.exists():
            remedy = "Say what the model takes: `model.image: {size: 224}`."
            raise UserError(f"there is no {FILE}.", where=str(folder), remedy=remedy)
        try:
            return cls._from_settings(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            what = f"its settings cannot be followed: {type(error).__name__} {error}."
            raise UserError(what, where=str(path), remedy="State them: `model.image: {size: 224}`.") from None

    @classmethod
    def _from_settings(cls, settings: Mapping[str, Any]) -> ImageProcessor:
        size, edge = _size(settings["size"]), None
        height, width = _sides(size)
        if settings.get("do_center_crop") and "crop_size" in settings:
            edge = size.get("shortest_edge")
            height, width = _sides(_size(settings["crop_size"]))
        elif "height" not in size:  # ConvNeXt's and ResNet's way to say the same
            edge = round(height / settings["crop_pct"]) if "crop_pct" in settings and height < 384 else height
        normalises = settings.get("do_normalize", True)
        mean, std = (_channels(settings[key]) if normalises else (value,) * 3 for key, value in (("image_mean", 0.0), ("image_std", 1.0)))
        return cls(height, width, mean, std, edge, int(settings.get("resample", _BILINEAR)))


def _size(value: Any) -> dict[str, int]:
    """A number meant the shorter side where pictures are cropped afterwards, and else a square."""
    return {"shortest_edge": value, "height": value, "width": value} if isinstance(value, int) else dict(value)


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"], size["shortest_edge"])


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(float(part) for part in (value if isinstance(value, list) else [value]))


def from_spec(spec: ImageSpec) -> ImageProcessor:
    height, width = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
    mean, std = (value * spec.channels if len(value) == 1 else value for value in (spec.mean, spec.std))
    return ImageProcessor(height, width, mean, std)


def image_processor(spec: ModelInput, storage: Storage | None) -> ImageProcessor:
    """What `model.image` says, or what comes with the model. Raises UserError, and what `resolve` raises."""
    if spec.image is not None:
        return from_spec(spec.image)
    from raybm.models.references import resolve

    return ImageProcessor.from_pretrained(resolve(spec.ref, storage))
