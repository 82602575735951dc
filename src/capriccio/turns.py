"""Turns: a scene with subjects and regions is painted one picture after the other.

A region whose prompt names a subject in braces is that subject's place; of a layout, the cell whose prompt has the
subject's name among its words. The first turn paints all regions, or the layout, with the names as words; then each
subject is painted into its place in the picture before, in the order of the regions, so that a later one lies on top. A
turn is a function from the picture so far to a scene, and nothing here paints. A method that all conditions name
(``by``) paints all of them at once.

    Scene("a {mug} and a {hat} on a table", [
        Subject("mug.png", name="mug"), Subject("hat.png", name="hat"),
        Region("a {mug}", box=(0, 0.3, 0.5, 1)), Region("a {hat}", box=(0.5, 0.3, 1, 1)),
    ])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from capriccio import text
from capriccio.errors import CapriccioError
from capriccio.perception.pages import Page, page_regions
from capriccio.perception.planners import planner
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
    """Return the turns of a scene in order: one that paints all of it, unless it has subjects with regions or a layout.

    Raises:
        CapriccioError: If a subject has no region or several, or a region has several subjects; if a layout was not
            `settled`.
    """
    if not are_several(scene):
        return (Turn("all of it", lambda _: scene),)
    subjects = {one.name: one for one in scene.conditions if isinstance(one, Subject)}
    regions = [one for one in scene.conditions if isinstance(one, Region)]
    layout = next((one for one in scene.conditions if isinstance(one, Layout)), None)
    if layout is not None and not regions:
        regions = _cells(layout, list(subjects))
    places = places_of(list(subjects), regions)
    first = _first(scene, places)
    later = (_into(scene, subjects[name], region) for name, region in places.items())
    return (Turn("the regions" if layout is None else "the layout", lambda _: first), *later)


def are_several(scene: Scene) -> bool:
    """Whether a scene is painted in several turns; not where all conditions name one method, which is to do all."""
    kinds = {one.kind for one in scene.conditions}
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


def _into(scene: Scene, subject: Subject, region: Region) -> Turn:
    """Return the turn that paints a subject into its place: the region's prompt says what is painted there."""
    along = _companions(scene, region)
    names = [subject.name, *(name for one in along if (name := name_of(one)) is not None)]
    prompt = filled(region.prompt, but=names)

    def scene_on(picture: Image.Image | None) -> Scene:
        if picture is None:
            raise CapriccioError(
                f"The subject {subject.name!r} is painted into a picture; give that of the turn before."
            )
        place = region.cover(picture.width, picture.height)
        if place.all():
            raise CapriccioError(
                f"The region {region.prompt!r}, the place of {subject.name!r}, is the whole picture; make it smaller, "
                "or leave the regions out."
            )
        edit = Edit(picture, mask=place, feather=region.feather)
        # All turns are of one size: the pixels of a place are neither shrunk nor enlarged when they are put back.
        return scene.but(prompt=prompt, conditions=(subject, edit, *along), width=picture.width, height=picture.height)

    return Turn(f"the {subject.name} into {region.words!r}", scene_on)


__all__ = ["Turn", "are_several", "places_of", "settled", "turns"]
