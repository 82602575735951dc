"""Turns: a scene with subjects and regions, or with regions of a given picture, is painted one after the other.

A region whose prompt names a subject in braces is that subject's place; of a layout, the cell whose prompt has the
subject's name among its words. The first turn paints all regions, or the layout, with the names as words; then each
subject is painted into its place in the picture before, in the order of the regions, so that a later one lies on top. A
turn is a function from the picture so far to a scene, and nothing here paints. A method that all conditions name
(``by``) paints all of them at once.

    Scene("a {mug} and a {hat} on a table", [
        Subject("mug.png", name="mug"), Subject("hat.png", name="hat"),
        Region("a {mug}", box=(0, 0.3, 0.5, 1)), Region("a {hat}", box=(0.5, 0.3, 1, 1)),
    ])

With an edit that has no mask of its own, the regions are its masks: there is a picture already, and each region is
painted into it in turn, with the subject that it names or from its prompt alone.

    Scene("", [Edit("table.png", zoom=1.3), Subject("mug.png", name="mug"),
               Region("a {mug}", box=(0, 0.3, 0.5, 1)), Region("a red hat", mask="shelf.png")])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from capriccio import text
from capriccio.errors import CapriccioError
from capriccio.perception.pages import Page, page_regions
from capriccio.perception.planners import planner
from capriccio.pictures import open_picture
from capriccio.scene import (
    Companion,
    Condition,
    Edit,
    Layout,
    Lora,
    Region,
    Scene,
    Subject,
    filled,
    name_of,
    references,
)


@dataclass(frozen=True)
class Turn:
    """One picture among those that a scene is painted by.

    Attributes:
        says: What is painted.
        scene: Returns what to paint, given the picture of the turn before; the first turn takes ``None``.
    """

    says: str
    scene: Callable[[Image.Image | None], Scene]


def turns(scene: Scene) -> tuple[Turn, ...]:
    """Return the turns of a scene in order: one that paints all of it, unless `are_several`.

    Raises:
        CapriccioError: If a subject has no region or several, or a region has several subjects; if a layout was not
            `settled`; if an edit with regions has a place or a strength of its own.
    """
    if not are_several(scene):
        return (Turn("all of it", lambda _: scene),)
    subjects = {one.name: one for one in scene.conditions if isinstance(one, Subject)}
    regions = [one for one in scene.conditions if isinstance(one, Region)]
    if regions and any(isinstance(one, Edit) for one in scene.conditions):
        return _into_picture(scene, subjects, regions)
    layout = next((one for one in scene.conditions if isinstance(one, Layout)), None)
    if layout is not None and not regions:
        regions = _cells(layout, list(subjects))
    places = places_of(list(subjects), regions)
    first = _first(scene, places)
    later = (_into(scene, region, subjects[name]) for name, region in places.items())
    return (Turn("the regions" if layout is None else "the layout", lambda _: first), *later)


def are_several(scene: Scene) -> bool:
    """Whether a scene is painted in turns: subjects with regions or a layout, a picture with regions.

    Not where all conditions name one method, which is to do all.
    """
    kinds = {one.kind for one in scene.conditions}
    if {"edit", "region"} <= kinds <= {"edit", "region", "subject", "control", "lora"}:
        return True
    methods = {one.by for one in scene.conditions if not isinstance(one, Companion)}
    return "subject" in kinds and bool(kinds & {"region", "layout"}) and (len(methods) > 1 or None in methods)


def settled(scene: Scene) -> Scene:
    """Return a scene whose layout has a page, where its turns depend on it: a planner is asked once, and not again.

    Raises:
        CapriccioError: If the planner has no answer.
    """
    if not are_several(scene) or all(one.page is not None for one in scene.conditions if isinstance(one, Layout)):
        return scene

    def with_page(one: Condition) -> Condition:
        if not isinstance(one, Layout) or one.page is not None:
            return one
        page = planner(one.planner).plan(scene.words)
        return one.model_copy(update={"page": page.model_dump(mode="json")})

    return scene.but(conditions=tuple(map(with_page, scene.conditions)))


def _cells(layout: Layout, subjects: Sequence[str]) -> list[Region]:
    """Return the cells of a page as regions, the names of subjects among their words in braces."""
    if layout.page is None:
        raise CapriccioError(
            "A layout has no page yet, so that nobody knows where its subjects go; plan the scene first."
        )
    cells = page_regions(Page(**layout.page))
    for name in subjects:
        if not any(text.spans(cell.prompt, name) for cell in cells):
            shown = ", ".join(repr(cell.prompt) for cell in cells)
            raise CapriccioError(
                f"No cell of the page shows the subject {name!r}: {shown}; name it in the prompt of the scene or of "
                "the cell where it is to be."
            )
    return [cell.model_copy(update={"prompt": _in_braces(cell.prompt, subjects)}) for cell in cells]


def _in_braces(prompt: str, names: Sequence[str]) -> str:
    """Return a prompt with the first mention of each name in braces."""
    for name in names:
        for start, stop in text.spans(prompt, name)[:1]:
            prompt = f"{prompt[:start].rstrip('{')}{{{name}}}{prompt[stop:].lstrip('}')}"
    return prompt


def places_of(subjects: Sequence[str], regions: Sequence[Region]) -> dict[str, Region]:
    """Return the region of each subject (by its name), in the order of the regions.

    Raises:
        CapriccioError: If a subject has no region or several, or a region has several subjects.
    """
    places: dict[str, Region] = {}
    for region in regions:
        named = [name for name in dict.fromkeys(references(region.prompt)) if name in subjects]
        if len(named) > 1:
            raise CapriccioError(
                f"The region {region.prompt!r} names the subjects {' and '.join(map(repr, named))}, but it is the "
                "place of one; give each a region of its own."
            )
        for name in named:
            if name in places:
                raise CapriccioError(
                    f"The subject {name!r} is named by two regions, {places[name].prompt!r} and {region.prompt!r}, but "
                    "has one place; name it in one of them."
                )
            places[name] = region
    for name in subjects:
        if name not in places:
            raise CapriccioError(
                f"The scene has regions, but none of them names the subject {name!r}; write {{{name}}} in the prompt "
                "of the region where it is to be."
            )
    return places


def _first(scene: Scene, places: dict[str, Region]) -> Scene:
    """Return the scene without its subjects: their names are words."""
    others = [one for one in scene.conditions if not isinstance(one, Subject)]
    names = [name for one in others if (name := name_of(one)) is not None]
    conditions = [_in_words(one, names, one in places.values()) for one in others]
    return scene.but(prompt=filled(scene.prompt, but=names), conditions=tuple(conditions))


def _in_words(condition: Condition, names: Sequence[str], is_place: bool) -> Condition:
    if not isinstance(condition, Region):
        return condition
    # The border of a subject's place is softened in its own turn.
    soft = {"feather": 0} if is_place else {}
    return condition.model_copy(update={"prompt": filled(condition.prompt, but=names)} | soft)


def _companions(scene: Scene, region: Region) -> tuple[Companion, ...]:
    """Return what goes along into a place: all but the LoRAs of other regions; its own LoRAs have all of the turn."""
    own = [one for one in scene.conditions if isinstance(one, Companion)]
    return tuple(
        one.model_copy(update={"region": None}) if isinstance(one, Lora) else one
        for one in own
        if not isinstance(one, Lora) or one.region in (None, region.name)
    )


def _into_picture(scene: Scene, subjects: Mapping[str, Subject], regions: Sequence[Region]) -> tuple[Turn, ...]:
    """Return a turn for each region of a given picture."""
    edits = [one for one in scene.conditions if isinstance(one, Edit)]
    (edit, *others) = edits
    if others:
        raise CapriccioError(
            f"{len(edits)} edits came with regions, but the regions are places of one picture; give one."
        )
    if edit.mask is not None or edit.strength != 1:
        given = "a mask" if edit.mask is not None else f"strength={edit.strength:g}"
        raise CapriccioError(
            f"An edit with regions is painted at their places, from noise, but came with {given}; leave it out (a "
            "region may have a mask)."
        )
    places = places_of(list(subjects), regions)
    for region in regions:
        if region.strength is not None:
            raise CapriccioError(
                f"strength of the region {region.prompt!r} has no effect on a given picture, where each region is "
                "painted by itself; leave it out."
            )
    owners = [next((subjects[name] for name, place in places.items() if place is region), None) for region in regions]
    return tuple(_into(scene, region, owner, edit) for region, owner in zip(regions, owners, strict=True))


def _into(scene: Scene, region: Region, subject: Subject | None, edit: Edit | None = None) -> Turn:
    """Return the turn that paints a region of the picture before, or of the one to edit: what its prompt says there.

    Args:
        scene: All of it.
        region: The place.
        subject: Whose place it is, if anybody's.
        edit: The picture that the first turn begins from, and how it is edited; without, an earlier turn painted it.
    """
    along = _companions(scene, region)
    own = () if subject is None else (subject,)
    names = [*(one.name for one in own), *(name for one in along if (name := name_of(one)) is not None)]
    prompt = filled(region.prompt, but=names)
    whose = "" if subject is None else f", the place of {subject.name!r},"

    def scene_on(picture: Image.Image | None) -> Scene:
        before = picture if picture is not None or edit is None else edit.image
        if before is None:
            raise CapriccioError(
                f"The region {region.prompt!r} is painted into the picture of the turn before; give it."
            )
        width, height = open_picture(before).size
        place = region.cover(width, height)
        if place.all():
            raise CapriccioError(
                f"The region {region.prompt!r}{whose} is the whole picture; make it smaller, or leave the regions out."
            )
        here = {"image": before, "mask": place, "feather": region.feather}
        conditions = (*own, Edit(**(dict(edit or {}) | here)), *along)
        # Turns that were painted are of one size: what goes back into them is neither shrunk nor enlarged.
        size = {"width": width, "height": height} if edit is None else {}
        return scene.but(prompt=prompt, conditions=conditions, **size)

    words = repr(region.words)
    return Turn(f"{words} at its place" if subject is None else f"the {subject.name} into {words}", scene_on)


__all__ = ["Turn", "are_several", "places_of", "settled", "turns"]
