"""The pictures: SVG emoji of two permissively licensed sets, rendered to square RGBA images.

Vector sources keep the build independent of fonts and image downloads, and two drawings of each
concept teach the model what they have in common.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .captions import COLOURS, WHITE, slug

SIZE = 64

#: Style word in captions -> npm package with the drawings.
STYLES = {"noto": "@iconify-json/noto", "fluent": "@iconify-json/fluent-emoji-flat"}

#: emojibase groups: 0 smileys, 3 animals and nature, 4 food and drink, 5 travel and places,
#: 6 activities, 7 objects, 8 symbols. People (1) and flags (9) have too many near-identical
#: variants to be of use at 64 pixels.
ALL_GROUPS = (0, 3, 4, 5, 6, 7, 8)

#: The concepts that the denoiser learns. About 300 are what it can hold and still draw well.
MODEL_GROUPS = (3, 4)

#: Names that would only repeat a drawing (skin tones, mirrored) or that are text (keys, clocks).
_SKIP = re.compile(
    r"skin-tone|(light|medium|dark)-skin|-button$|o-clock|oclock|thirty|^keycap|^input-|^japanese-"
    r"|facing-right|^letter-|^\d+$|^\w$"
)

#: Part of the frame that the longer side of a drawing fills.
_FILL = 0.875


@dataclass(frozen=True, slots=True)
class Icons:
    """Rendered pictures; row i of every field belongs to picture i."""

    rgba: npt.NDArray[np.uint8]  # (pictures, SIZE, SIZE, 4), straight alpha
    names: npt.NDArray[np.str_]  # Iconify names: "red-apple"
    styles: npt.NDArray[np.str_]  # keys of STYLES
    groups: npt.NDArray[np.int64]  # emojibase groups

    def __len__(self) -> int:
        return len(self.names)

    def of_groups(self, groups: Collection[int]) -> Icons:
        """Keep the pictures of some emojibase groups, in the same order."""
        keep = np.isin(self.groups, list(groups))
        return Icons(self.rgba[keep], self.names[keep], self.styles[keep], self.groups[keep])

    def concepts(self) -> list[str]:
        """List the distinct names in alphabetical order."""
        return sorted(set(self.names.tolist()))


def render_icons(node_modules: Path) -> Icons:
    """Render every usable drawing of the npm packages below ``node_modules``.

    A concept is used if emojibase names its group and Noto draws it; Fluent lacks a few of them.
    """
    group_of = _groups_by_name(node_modules)
    sets = {style: _read_set(node_modules, package) for style, package in STYLES.items()}
    names = sorted(name for name in sets["noto"]["icons"] if name in group_of and _usable(name))
    rows: list[tuple[npt.NDArray[np.uint8], str, str, int]] = []
    for style, icon_set in sets.items():
        for name in names:
            icon = icon_set["icons"].get(name)
            if icon is not None:
                rows.append((_render(_svg(icon_set, icon)), name, style, group_of[name]))
    rgba, row_names, row_styles, row_groups = zip(*rows, strict=True)
    return Icons(np.stack(rgba), np.array(row_names), np.array(row_styles), np.array(row_groups))


def save_icons(icons: Icons, path: Path) -> None:
    """Write the pictures to one ``.npz`` file, in one step: a killed build leaves none or all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, rgba=icons.rgba, names=icons.names, styles=icons.styles, groups=icons.groups
        )
    partial.replace(path)


def load_icons(path: Path) -> Icons:
    """Read what :func:`save_icons` wrote."""
    with np.load(path) as file:
        return Icons(file["rgba"], file["names"], file["styles"], file["groups"])


def on_colour(rgba: npt.NDArray[np.uint8], colour: str = WHITE) -> npt.NDArray[np.float32]:
    """Lay pictures (n, h, w, 4) on a named background; returns (n, h, w, 3) in 0..1."""
    pictures = rgba.astype(np.float32) / 255
    alpha = pictures[..., 3:]
    background = np.array(COLOURS[colour], dtype=np.float32) / 255
    return np.asarray(pictures[..., :3] * alpha + background * (1 - alpha), dtype=np.float32)


def picture_sheet(icons: Icons, columns: int = 16, rows: int = 10, seed: int = 0) -> Image.Image:
    """Show a random sample of the pictures on white, to check a rendering by eye."""
    order = np.random.default_rng(seed).permutation(len(icons))[: columns * rows]
    pixels = (on_colour(icons.rgba[order]) * 255).round().astype(np.uint8)
    sheet = Image.new("RGB", (columns * SIZE, rows * SIZE), "white")
    for place, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), (place % columns * SIZE, place // columns * SIZE))
    return sheet


def _groups_by_name(node_modules: Path) -> dict[str, int]:
    entries = json.loads((node_modules / "emojibase-data/en/data.json").read_text("utf-8"))
    return {
        slug(entry["label"]): entry["group"]
        for entry in entries
        if entry.get("group") in ALL_GROUPS
    }


def _read_set(node_modules: Path, package: str) -> dict[str, Any]:
    icon_set: dict[str, Any] = json.loads(
        (node_modules / package / "icons.json").read_text("utf-8")
    )
    return icon_set


def _usable(name: str) -> bool:
    return _SKIP.search(name) is None


def _svg(icon_set: dict[str, Any], icon: dict[str, Any]) -> str:
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    view_box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{view_box}">{icon["body"]}</svg>'
    )


def _render(svg: str) -> npt.NDArray[np.uint8]:
    """Draw at twice the size, crop to the ink, centre: all concepts appear equally large."""
    import resvg_py  # here, because only this stage needs it

    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE * 2, height=SIZE * 2)
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    ink = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    drawing = drawing.crop(ink)
    scale = _FILL * SIZE / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    drawing = drawing.resize(size, Image.Resampling.LANCZOS)
    frame = Image.new("RGBA", (SIZE, SIZE))
    frame.paste(drawing, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return np.asarray(frame)
