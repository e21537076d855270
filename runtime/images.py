"""Pictures from files, as training, the graph that takes pixels and a client of a server must read them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Policy = Literal["crop", "letterbox", "stretch"]
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and its values that exchange height and width."""
MAX_PIXELS = 1 << 26
"""Of one picture; decoded it takes 3 bytes each, and several are decoded at once."""


@dataclass(frozen=True)
class Fit:
    """How a picture of any size becomes one of `size` (height, width).

    crop: the shorter side is resized to `resize`, and the middle cut out. letterbox: the whole picture is resized to
    lie inside, and `background` fills the rest. stretch: both sides are resized, whatever becomes of the proportions.
    """

    policy: Policy
    size: tuple[int, int]
    resize: int
    background: tuple[int, int, int] = (255, 255, 255)

    def placed(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size (height, width) after resizing, and row and column in it at which the picture begins that comes out;
        negative ones where it is padded."""
        rows, columns = self.size
        if self.policy == "stretch":
            return self.size, (0, 0)
        if self.policy == "letterbox":
            scale = min(rows / height, columns / width)
            inner = max(1, round(height * scale)), max(1, round(width * scale))
            return inner, ((inner[0] - rows) // 2, (inner[1] - columns) // 2)
        short, long = sorted((height, width))
        longer = int(self.resize * long / short)
        inner = (self.resize, longer) if height <= width else (longer, self.resize)
        return inner, (round((inner[0] - rows) / 2), round((inner[1] - columns) / 2))

    def __call__(self, image: Image) -> Image:
        from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)

        inner, (top, first) = self.placed(image.height, image.width)
        if (image.height, image.width) != inner:
            image = image.resize(inner[::-1], pillow.Resampling.BILINEAR)
        if self.policy == "letterbox" and inner != self.size:
            whole = pillow.new("RGB", self.size[::-1], self.background)
            whole.paste(image, (-first, -top))
            return whole
        return image.crop((first, top, first + self.size[1], top + self.size[0]))


def fitted_mask(labels: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """A map of classes (height, width) as `fit` fits its image: each pixel has the label of the nearest one, and what
    a letterbox fills has none (255)."""
    import numpy as np
    from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)

    inner, (top, first) = fit.placed(*labels.shape)
    mask = pillow.fromarray(labels)
    if labels.shape != inner:
        mask = mask.resize(inner[::-1], pillow.Resampling.NEAREST)
    whole = pillow.new("L", fit.size[::-1], 255)
    whole.paste(mask, (-first, -top))
    return np.array(whole)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The labels (height, width) in a PNG: the indices of its palette, whatever their colours, or its grey levels.
    UserError naming the file: no such PNG, damaged, or too large."""
    import numpy as np
    from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)

    try:
        with pillow.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise OSError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            if image.mode not in ("P", "L", "1", "I", "I;16"):
                raise OSError(f"its pixels are {image.mode} colours, no class numbers")
            levels = np.asarray(image)
            if int(levels.max(initial=0)) > 255:
                raise OSError(f"it holds {levels.max()}, and 255 is the largest label")
            return levels.astype(np.uint8)
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = "a PNG whose palette indices or grey levels are classes"
        raise UserError(f"the mask {path} cannot be read ({reason})", expected, "mend or remove it") from error


def size_of(path: Path, formats: Sequence[str]) -> tuple[int, int]:
    """Height and width of a picture as `read_picture` gives it, from its header. UserError naming the file."""
    from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)

    try:
        with pillow.open(path, formats=list(formats)) as image:
            turned = image.getexif().get(ORIENTATION, 1) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as in read_picture
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be decoded ({reason})", f"one of {', '.join(formats)}", "mend or remove it"
        ) from error


def read_picture(
    path: Path, formats: Sequence[str], background: tuple[int, int, int] | None = (255, 255, 255)
) -> Image:
    """A file as RGB of 8 bits: upright by its EXIF orientation, transparent parts laid over `background` (None:
    kept, as RGBA), 16 bits scaled to 8. UserError naming the file: no plain file, no picture of these `formats`,
    damaged, or too large."""
    from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)
    from PIL import ImageOps

    try:
        if not path.is_file():
            raise OSError("no such file" if not path.exists() else "no plain file")
        with pillow.open(path, formats=list(formats)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise OSError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            upright = ImageOps.exif_transpose(_eight_bits(image))
            return upright.convert("RGBA") if background is None else _over(upright, background)
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be decoded ({reason})", f"one of {', '.join(formats)}", "mend or remove it"
        ) from error


def _eight_bits(image: Image) -> Image:
    """Pillow cuts levels above 255 off where it converts 16 bits itself."""
    import numpy as np
    from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)

    if image.mode == "F":
        raise OSError("pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image
    levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    scaled = pillow.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    scaled.info.update(image.info)
    return scaled


def _over(image: Image, background: tuple[int, int, int]) -> Image:
    from PIL import Image as pillow  # noqa: N813  (Image is the type of one picture here)

    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        canvas = pillow.new("RGBA", picture.size, (*background, 255))
        return pillow.alpha_composite(canvas, picture).convert("RGB")
    return image.convert("RGB")
