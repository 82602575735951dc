"""The overlay: a plan as a picture, drawn without a forward pass of any model.

Panels, what is known and what is painted, and each group of image tokens on the very cells that it has in the finest
layers; below, what each is called, how many tokens it has, and its prompt.

    overlay(studio.plan(scene)).save("layout.png")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_cdt

from capriccio.attention import PictureLayout
from capriccio.canvas import Box, Canvas, Mask, opaque
from capriccio.draft import CANVAS, PAINT
from capriccio.errors import CapriccioError
from capriccio.perception.pages import Page
from capriccio.pictures import wrapped
from capriccio.plan import Plan
from capriccio.scene import Style, Subject

SMALLEST = 768
"""Pixels: a canvas is enlarged, by a whole number, until its longer side has as many."""

Colour = tuple[int, int, int]
Pixels = NDArray[np.float64]

_INK, _FAINT, _PAPER = (38, 38, 38), (112, 112, 112), (255, 255, 255)
_BLANK = (236, 234, 229)
_COLOURS: tuple[Colour, ...] = (
    (207, 62, 74),
    (35, 116, 171),
    (44, 138, 87),
    (214, 125, 18),
    (124, 79, 156),
    (0, 133, 140),
    (189, 78, 140),
    (122, 101, 60),
)


@dataclass(frozen=True, eq=False)
class Patch:
    """A named part of a drawing.

    Attributes:
        name: As the plan prints it; its last part is written on the picture.
        cells: Where it is, booleans (rows, columns).
        size: How large it is, in words.
        prompt: What is painted there, if it has a text of its own.
    """

    name: str
    cells: Mask
    size: str
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn.

    Attributes:
        width: Pixels of the canvas.
        height: Pixels of the canvas.
        cell: Pixels a side of one cell.
        heading: One line above everything else that is written below.
        prompt: Of the whole picture.
        patches: In the order of the legend.
        panels: By name, what is written above each panel, and its box.
        picture: What is known of the canvas, of its size.
        paint: Where it is painted anew, booleans (height, width); everywhere if ``None``.
        grid: Whether cells are told apart by thin lines.
        notes: Sentences below everything else.
    """

    width: int
    height: int
    cell: int
    heading: str
    prompt: str
    patches: Sequence[Patch]
    panels: Mapping[str, tuple[str, Box]] = field(default_factory=dict)
    picture: Image.Image | None = None
    paint: Mask | None = None
    grid: bool = True
    notes: tuple[str, ...] = ()


def overlay(plan: Plan) -> Image.Image:
    """Draw a plan.

    Pictures that a scene brings lie on the canvas as far as they can be laid there without looking for something in
    them: a subject whose mask must still be found is shown with its surroundings. Of a plan in turns, the first is
    drawn; each of ``plan.later`` is a plan that can be drawn as well.
    """
    known, canvas = sketch(plan), plan.canvas
    cell, groups = image_groups(plan)
    rows, columns = next(iter(groups.values())).shape
    paint = known.get(PAINT)
    told = {name: cells for name, cells in groups.items() if name != "image" and cells.any()} or groups
    patches = [
        Patch(name, cells, _tokens(cells), plan.passages.get(name.removeprefix("image:"), ""))
        for name, cells in told.items()
    ]
    method = plan.method.name if plan.method else "text to image"
    size = f"{canvas.width} x {canvas.height} px, {columns} x {rows} = {rows * columns} tokens"
    return draw(
        Drawing(
            canvas.width,
            canvas.height,
            cell,
            f"{method} on {plan.backbone}: {size}",
            plan.prompt,
            patches,
            {name: (_panel_words(plan, name, box, paint), box) for name, box in canvas.panels},
            _unpainted(canvas, known.get(CANVAS), paint),
            paint,
            notes=tuple(_notes(plan, paint)),
        )
    )


def page_overlay(page: Page, width: int = 1024, height: int = 1024) -> Image.Image:
    """Draw the cells of a page on a picture of some size in pixels."""
    patches = []
    for number, (cell, prompt) in enumerate(zip(page.cells, page.regions, strict=True), 1):
        inside = np.zeros((height, width), bool)
        left, right = (round(edge * width) for edge in (cell.left, cell.right))
        top, bottom = (round(edge * height) for edge in (cell.top, cell.bottom))
        inside[top:bottom, left:right] = True
        share = (cell.right - cell.left) * (cell.bottom - cell.top)
        patches.append(Patch(f"region/{number}", inside, f"{share:.0%} of the page", prompt))
    heading = f"page of {len(patches)} cell{'s' * (len(patches) > 1)}, split ratio {page.ratio}"
    return draw(Drawing(width, height, 1, heading, page.base, patches, grid=False))


def image_groups(plan: Plan) -> tuple[int, dict[str, Mask]]:
    """Return the pixels a side of the finest image tokens, and the cells (rows, columns) of each group of them."""
    layout, canvas = plan.layout, plan.canvas
    if isinstance(layout, PictureLayout):
        image = layout.image(0)
        return layout.cell, {name: cells.reshape(image.grid) for name, cells in image.groups.items()}
    # In a joint sequence the image stands behind all texts.
    tokens = {name: mask[-canvas.num_tokens :] for name, mask in layout.groups.items()}
    return canvas.token, {name: cells.reshape(canvas.grid) for name, cells in tokens.items() if cells.any()}


def sketch(plan: Plan) -> dict[str, Any]:
    """Return the pictures and the mask among the preparations of a plan, made without a look of any model.

    Where a picture needs something that must be found first, the first picture it needs stands in for it.
    """
    made: dict[str, Any] = {}
    for step in plan.preparations:
        if step.kind not in ("picture", "pictures", "mask"):
            continue
        needed = [made[name] for name in step.needs if name in made]
        if len(needed) == len(step.needs):
            made[step.name] = step.run(*needed)
        elif needed:
            made[step.name] = opaque(needed[0][0] if isinstance(needed[0], list) else needed[0])
    return made


def _unpainted(canvas: Canvas, picture: Image.Image | None, paint: Mask | None) -> Image.Image | None:
    """Leave panels of which nothing is known as blank as paper, and pale what will be painted over."""
    if picture is None or paint is None:
        return picture
    pixels = np.array(picture.convert("RGB"), np.float64)
    pixels[paint] += 0.35 * (np.array(_BLANK) - pixels[paint])
    for left, top, right, bottom in [box.corners for _, box in canvas.panels] or [(0, 0, canvas.width, canvas.height)]:
        if paint[top:bottom, left:right].all():
            pixels[top:bottom, left:right] = _BLANK
    return Image.fromarray(pixels.round().astype(np.uint8))


def _notes(plan: Plan, paint: Mask | None) -> Iterator[str]:
    if plan.later:
        others = "; ".join(turn.says for turn in plan.later)
        yield f"Shown is turn 1 of {len(plan.turns)}, {plan.says}; then, on the picture before: {others}."
    if paint is not None:
        rest = "" if paint.all() else "; the rest is known"
        yield f"Hatched is what is painted, {paint.mean():.0%} of the canvas{rest}."
    finds = [step.says for step in plan.preparations if step.kind == "masks"]
    if finds:
        yield f"Pictures are shown as given; before painting: {', '.join(finds)}."


def _tokens(cells: Mask) -> str:
    return f"{int(cells.sum())} of {cells.size} tokens"


def _panel_words(plan: Plan, name: str, box: Box, paint: Mask | None) -> str:
    """Say what a panel is: who is shown there, or that it is painted."""
    left, top, right, bottom = box.corners
    if paint is None or paint[top:bottom, left:right].any():
        return f"{name}: painted, {box.width} x {box.height} px"
    shown = [one.name for one in plan.scene.conditions if isinstance(one, Subject | Style)]
    return f"{name}: {' and '.join(shown) or 'known'}, {box.width} x {box.height} px"


# --- drawing -----------------------------------------------------------------------------------------------------


def draw(drawing: Drawing) -> Image.Image:
    """Return the picture of a drawing: the canvas, enlarged where it is small, with a legend below.

    Raises:
        CapriccioError: If there is nothing to draw.
    """
    if not drawing.patches:
        raise CapriccioError("There is no part to draw; give at least one patch.")
    scale = ceil(SMALLEST / max(drawing.width, drawing.height))
    width, height = drawing.width * scale, drawing.height * scale
    letters = max(18, max(width, height) * 18 // 1024)
    font, line, margin = ImageFont.load_default(letters), round(letters * 1.4), letters
    colours = _palette(drawing.patches)
    above = margin + (line if drawing.panels else 0)
    sheet_width = max(width, SMALLEST) + 2 * margin
    legend = _legend(drawing, colours, font, sheet_width - 2 * margin)
    sheet = Image.new("RGB", (sheet_width, above + height + legend.height + 2 * margin), _PAPER)
    left = (sheet_width - width) // 2
    canvas = Image.fromarray(_canvas(drawing, colours, scale).round().astype(np.uint8))
    _write_names(canvas, drawing, colours, scale, font)
    sheet.paste(canvas, (left, above))
    brush = ImageDraw.Draw(sheet)
    for words, box in drawing.panels.values():
        middle = left + (box.left + box.width / 2) * scale
        brush.text((middle, above - letters // 3), words, _INK, font, anchor="mb")
    sheet.paste(legend, (margin, above + height + margin))
    return sheet


def _palette(patches: Sequence[Patch]) -> list[Colour]:
    """A colour for each patch; what is no region of its own is grey."""
    colours = _endless_colours()
    return [_FAINT if patch.name.endswith(("background", "nowhere")) else next(colours) for patch in patches]


def _endless_colours() -> Iterator[Colour]:
    yield from _COLOURS
    # The golden angle: however many there are, neighbours differ.
    for number in count():
        red, green, blue = hls_to_rgb(number * 0.382 % 1, 0.34 + 0.08 * (number % 2), 0.55)
        yield round(255 * red), round(255 * green), round(255 * blue)


def _canvas(drawing: Drawing, colours: Sequence[Colour], scale: int) -> Pixels:
    """The canvas in colour, (height, width, 3) with values up to 255, without a word on it."""
    size = drawing.width * scale, drawing.height * scale
    known = drawing.picture is not None
    ground = (
        drawing.picture.resize(size, Image.Resampling.LANCZOS) if drawing.picture else Image.new("RGB", size, _BLANK)
    )
    pixels = np.asarray(ground.convert("RGB"), np.float64)
    shapes = _shapes(drawing, scale)
    y, x = np.ogrid[: size[1], : size[0]]
    stripe = max(6, max(size) // 96)
    tint = _striped(shapes, (x + y) // stripe)
    opacity = 0.22 if known else 0.42
    for shape, colour in zip(tint, colours, strict=True):
        pixels[shape] += opacity * (np.array(colour) - pixels[shape])
    if drawing.grid and drawing.cell * scale >= 8:
        lines = (x % (drawing.cell * scale) == 0) | (y % (drawing.cell * scale) == 0)
        pixels[lines] += 0.35 * (255 - pixels[lines])
    if drawing.paint is not None:
        hatched = _enlarged(drawing.paint, scale) & ((x - y) % (3 * stripe) < max(1, stripe // 5))
        pixels[hatched] += 0.55 * (np.array(_INK) - pixels[hatched])
    for outline, colour in zip(_outlines(shapes, max(3, max(size) // 256)), colours, strict=True):
        pixels[outline] = colour
    return pixels


def _shapes(drawing: Drawing, scale: int) -> list[Mask]:
    return [
        _enlarged(patch.cells, drawing.cell * scale)[: drawing.height * scale, : drawing.width * scale]
        for patch in drawing.patches
    ]


def _enlarged(mask: Mask, by: int) -> Mask:
    return mask.repeat(by, 0).repeat(by, 1)


def _striped(shapes: Sequence[Mask], stripes: NDArray[np.int_]) -> list[Mask]:
    """Share places of several shapes among them, stripe by stripe."""
    several = np.maximum(np.sum(shapes, axis=0), 1)
    turn, before, shared = stripes % several, np.zeros_like(several), []
    for shape in shapes:
        shared.append(shape & (before == turn))
        before = before + shape
    return shared


def _outlines(shapes: Sequence[Mask], width: int) -> list[Mask]:
    """Draw each outline inside its shape, and inside the outlines of all earlier shapes that it overlaps."""
    outlines = []
    for number, shape in enumerate(shapes):
        lane = sum(bool((shape & earlier).any()) for earlier in shapes[:number]) * (width + 1)
        inside = _depth(shape)
        outlines.append((inside > lane) & (inside <= lane + width))
    return outlines


def _depth(shape: Mask) -> NDArray[np.int_]:
    """How many pixels it is to the border of a shape or of the picture, for each pixel; 0 outside."""
    return np.asarray(distance_transform_cdt(np.pad(shape, 1), metric="chessboard"))[1:-1, 1:-1]


def _write_names(
    canvas: Image.Image, drawing: Drawing, colours: Sequence[Colour], scale: int, font: ImageFont.FreeTypeFont | Any
) -> None:
    """Write the name of each patch where it is widest and alone; those of panels stand above them."""
    shapes, brush = _shapes(drawing, scale), ImageDraw.Draw(canvas)
    many = np.sum(shapes, axis=0) > 1
    for patch, shape, colour in zip(drawing.patches, shapes, colours, strict=True):
        name = patch.name.removeprefix("image:")
        if name in drawing.panels:
            continue
        alone = shape & ~many
        x, y = _middle(alone if alone.any() else shape)
        name = name.rsplit("/", 1)[-1]
        left, top, right, bottom = brush.textbbox((0, 0), name, font, anchor="mm")
        high, wide = (bottom - top) / 2 + font.size * 0.35, (right - left) / 2 + font.size * 0.5
        wide = max(wide, high)
        x, y = np.clip(x, wide, canvas.width - wide), np.clip(y, high, canvas.height - high)
        brush.rounded_rectangle((x - wide, y - high, x + wide, y + high), high, colour, _PAPER, 2)
        brush.text((x, y), name, _PAPER, font, anchor="mm")


def _middle(shape: Mask) -> tuple[float, float]:
    """The place of a shape that is farthest from its border; of several, the one nearest to their middle."""
    inside = _depth(shape)
    places = np.argwhere(inside == inside.max())
    y, x = places[np.abs(places - places.mean(0)).sum(1).argmin()]
    return float(x), float(y)


def _legend(drawing: Drawing, colours: Sequence[Colour], font: Any, width: int) -> Image.Image:
    """What is written below the canvas."""
    letters = round(font.size)
    line, indent = round(letters * 1.4), 2 * letters
    rows: list[tuple[str, str, Colour | None]] = [(drawing.heading, drawing.prompt, None)]
    rows += [
        (f"{patch.name.removeprefix('image:')}: {patch.size}", patch.prompt, colour)
        for patch, colour in zip(drawing.patches, colours, strict=True)
    ]
    rows += [("", note, None) for note in drawing.notes]
    lines = [(wrapped(head, font, width - indent), wrapped(prompt, font, width - indent)) for head, prompt, _ in rows]
    gap = letters // 2
    height = sum(len(head) * line + len(prompt) * line + gap for head, prompt in lines)
    sheet = Image.new("RGB", (width, height), _PAPER)
    brush, top = ImageDraw.Draw(sheet), 0
    for (head, prompt), (_, _, colour) in zip(lines, rows, strict=True):
        if colour is not None:
            brush.rounded_rectangle((0, top + letters * 0.2, letters * 1.2, top + letters * 1.4), 4, colour)
        start = 0 if colour is None else indent
        for words, ink in [*((words, _INK) for words in head), *((words, _FAINT) for words in prompt)]:
            brush.text((start, top), words, ink, font)
            top += line
        top += gap
    return sheet


__all__ = ["SMALLEST", "Drawing", "Patch", "draw", "image_groups", "overlay", "page_overlay", "sketch"]
