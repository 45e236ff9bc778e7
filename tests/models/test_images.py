from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raybm.core.errors import UserError
from raybm.models import dataurl
from raybm.models.images import ImageProcessor, from_spec
from raybm.models.spec import ImageSpec
from tests.pictures import noise, png

SQUEEZED = ImageProcessor(16, 24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CROPPED = ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3, shortest_edge=18, resample=3)
GREY = ImageProcessor(16, 16, (0.1,), (0.3,))


@pytest.mark.parametrize("ours", [SQUEEZED, CROPPED, GREY])
def test_transformers_reads_the_settings_and_makes_the_same_of_a_picture(tmp_path: Path, ours: ImageProcessor) -> None:
    from transformers import AutoImageProcessor

    ours.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == ours
    data = noise(0, (40, 60, 3) if ours.channels == 3 else (40, 60))
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    assert np.allclose(ours([data]).numpy(), theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": 32}, (32, 32, None)),
        ({"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": {"height": 20, "width": 22}}, (20, 22, 24)),
        ({"size": 24, "do_center_crop": True, "crop_size": 20}, (20, 20, 24)),
        ({"size": {"shortest_edge": 28}, "crop_pct": 0.875}, (28, 28, 32)),
        ({"size": {"shortest_edge": 28}}, (28, 28, 28)),
    ],
)
def test_settings_of_other_processors(tmp_path: Path, settings: dict[str, object], expected: tuple[int, int, int | None]) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(settings | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    read = ImageProcessor.from_pretrained(tmp_path)
    assert (read.height, read.width, read.shortest_edge) == expected
    assert read([noise(0)]).shape == (1, 3, *expected[:2])
    path.write_text("{}")
    with pytest.raises(UserError, match=r"model\.image"):
        ImageProcessor.from_pretrained(tmp_path)


def test_every_mode_of_a_picture_becomes_the_channels_wanted() -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 128 << 8, np.uint16)).save(deep, "PNG")  # 16 bits
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(clear, "PNG")
    assert GREY.pixels([deep.getvalue()]).max() == GREY.pixels([deep.getvalue()]).min() == 128
    assert SQUEEZED.pixels([clear.getvalue(), png(np.zeros((8, 8)))])[0, :, 0, 0].tolist() == [10, 20, 30]
    assert from_spec(ImageSpec(size=(4, 8), channels=3, mean=(0.1,))) == ImageProcessor(4, 8, (0.1,) * 3, (0.5,) * 3)


def test_a_picture_is_turned_as_its_camera_says() -> None:
    sideways, turned = Image.fromarray(np.array([[0, 255]], np.uint8)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by 90 degrees
    sideways.save(turned, "PNG", exif=exif)
    assert ImageProcessor(2, 1, (0.0,), (1.0,)).pixels([turned.getvalue()]).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "known format"),
        (noise(0)[:200], "truncated"),
        (b"P5 99999 99999 255\n", "far too many pixels"),
        (b"P5 9000 9000 255\n", "9000 × 9000 pixels"),
        (b"\xff\xd8\xff" + bytes(50), "known format"),
        (noise(0)[:-40], "truncated|broken"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        GREY.pixels([data])


def test_data_urls() -> None:
    data = noise(0)
    assert dataurl.decode(dataurl.encode(data)) == data
    assert dataurl.encode(data).startswith("data:image/png;base64,")
    for wrong in (None, "text", "data:text/plain;base64,AA==", "data:image/png,AA", "data:image/png;base64,A", "data:image/png;base64,é"):
        with pytest.raises(UserError):
            dataurl.decode(wrong)
    with pytest.raises(UserError, match="empty"):
        dataurl.encode(b"")
