"""A grammar that divides plain spatial sentences, those of the miniature's world among them, with no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from capriccio.errors import CapriccioError
from capriccio.perception.pages import Page, Row, join_ratio
from capriccio.perception.planners.language import check_prompt
from capriccio.world.vocabulary import SECTIONS

# Words are looked for in this order: the style in front, the setting before and behind, then what divides the rest.

_DET = r"(?:an?|the|one|two|three|four|five|six|seven|eight|nine|ten|some|several|another|his|her|their|its|my|our)"
_SIDES = r"left|right|top|bottom|upper|lower|middle|cent(?:er|re)"
_EXTENTS = r"side|corner|quarter|quadrant|half|third|part|edge|area|panel"
_PICTURE = r"(?:picture|image|photo|page|frame|scene|canvas|painting|composition)"

# Where a picture plays, the world's backdrops among them: the noun that a setting's phrase ends with, or near its end.
_SETTINGS = """
    beach sand sands shore coast seaside snow winter ice meadow grass field fields desert dunes dune night sky moonlight
    sea ocean water waves wall bricks table tabletop desk kitchen sunset sundown dusk evening dawn sunrise daylight noon
    morning afternoon midnight twilight mountains hills valley background backdrop scene landscape scenery countryside
    outdoors indoors studio forest jungle woods park garden street road sidewalk pavement city town village river lake
    waterfall island harbor harbour floor ground lawn room museum cafe café restaurant bar office school campus
    classroom library station airport market shop store stage stadium space universe world moon mars planet clouds rain
    sun sunlight sunshine autumn summer spring storm fog mist bedroom bathroom hallway castle palace church temple cave
    farm playground square plaza courtyard balcony rooftop terrace pier bridge party festival darkness light lighting
    shade style tokyo paris london
"""
_SCENERY = "|".join(_SETTINGS.split())
_PREPOSITION = r"(?:in front of|in|on|at|before|near|by|among|amidst?|inside|across|along|during|through|within)"
_PLAIN_WORDS = r"(?:(?!(?:and|with|wearing|of|in|on|at|by|an?|the)\b)[\w'-]+\s+)"
_IN_A_SETTING = (
    rf"(?:{_PREPOSITION}\s+(?:(?:an?|the|its|some)\s+)?(?:(?:middle|heart|cent(?:er|re)|edge)\s+of\s+(?:an?|the)\s+)?"
    rf"{_PLAIN_WORDS}{{0,3}}(?:{_SCENERY})\b(?:\s+top\b)?"
    rf"|(?:in\s+the\s+style\s+of|against)\s+(?!the\s+(?:{_SIDES})\b)[^,]+"
    rf"|under\s+(?:an?|the)\s+{_PLAIN_WORDS}{{0,2}}(?:sky|skies|stars|moon|moonlight|sun|sunlight|clouds|sea|water)\b"
    rf"|with\s+{_PLAIN_WORDS}{{1,4}}in\s+the\s+background\b)"
)


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_STYLE = _words(
    rf"^(?:(?:an?|the)\s+)?{_PLAIN_WORDS}{{0,4}}?(?:photo|photograph|picture|image|painting|drawing|sketch|illustration|"
    r"watercolou?r|mosaic|blueprint|sign|art|render|rendering|portrait|closeup|close-up|poster|cartoon)\s+"
    r"(?:of|showing|(?<=photo )with|(?<=picture )with|(?<=image )with)\s+|^[^:,]{1,40}\bstyle\s*:\s*"
)
_LEADING = _words(rf"^({_IN_A_SETTING}(?:\s+{_IN_A_SETTING})*)(?:\s*[,:]\s*|\s+(?={_DET}\b|there\b))")
_LEADING_CLAUSE = _words(rf"^({_PREPOSITION}\s+[^,:]+?)\s*[,:]\s+")
_TRAILING = _words(rf"\s*,?\s*\b{_IN_A_SETTING}")
_MANNER = _words(
    r",\s*(?=[^,]*\b(?:style|lighting|light|4k|8k|hd|detailed|quality|realistic|photorealistic|cinematic|masterpiece|"
    r"watercolou?r|illustration|render|rendering|bokeh|colou?rs|weather)\b)(?!\s*(?:wearing|with|holding)\b)"
)
_SHARED_VERB = _words(r"\s+(?:are|were)\s+(?=\w)")
_PLACE = _words(
    r"(?<![\w-])(?<!facing )(?<!looking )(?<!turning )(?<!turned )(?<!pointing )"
    r"(?P<where>(?:on|at|in|to|towards?)\s+the\s+(?:far\s+|very\s+|extreme\s+)?)?(?(where)|(?:the\s+)?)"
    rf"(?P<first>{_SIDES})(?:[\s-]+(?P<second>left|right|top|bottom|middle|cent(?:er|re)))?"
    rf"(?:[\s-]+hand(?=[\s-]+(?:{_EXTENTS})))?(?:[\s-]+(?:{_EXTENTS}))?(?:\s+of\s+(?:the|this)\s+{_PICTURE})?\b"
    # "On the left of a house" is no place of the picture, "in the left hand" none at all.
    rf"(?(where)(?![\s-]+(?:of|hand|foot|arm|leg|eye|ear|wing|paw|shoulder|left|right|{_EXTENTS})\b)"
    r"|\s*(?::|\b(?:shows?|has|holds|contains)\b))"
)
_ARRANGED: dict[str, re.Pattern[str]] = {
    "columns": _words(
        r"\b(?:from\s+)?left\s+to\s+right\b|\bside[\s-]by[\s-]side\b(?!\s+with\b)|\bin\s+a\s+(?:horizontal\s+)?(?:row|line)\b|"
        r"\bnext\s+to\s+each\s+other\b|\bbeside\s+each\s+other\b"
    ),
    "columns backwards": _words(r"\b(?:from\s+)?right\s+to\s+left\b"),
    "rows": _words(
        r"\b(?:from\s+)?top\s+to\s+bottom\b|\bin\s+a\s+(?:vertical\s+)?column\b|\bstacked\s+vertically\b|"
        r"\bone\s+(?:above|on\s+top\s+of)\s+the\s+other\b"
    ),
    "rows backwards": _words(r"\b(?:from\s+)?bottom\s+to\s+top\b"),
    "quarters": _words(
        r"\b(?:one\s+)?in\s+(?:each\s+of\s+)?(?:the\s+|its\s+)?(?:four|4)\s+(?:quarters|corners|quadrants|panels)\b|"
        r"\b(?:one\s+)?in\s+(?:each|every)\s+(?:quarter|corner|quadrant)\b|"
        r"\bin\s+an?\s+(?:2\s*[x×]\s*2|two\s+by\s+two)\s+grid\b|\bin\s+a\s+(?:square\s+)?grid\b"
    ),
}
_OF_THE_PICTURE = _words(rf"^\s*of\s+(?:the|this)\s+{_PICTURE}\b")
_BEING = r"(?:\s+(?:is|are|stands?|sits?|lies))?(?:\s+(?:directly|just|right))?\s+"
_RELATION = _words(
    rf"{_BEING}(?:(?P<left>(?:(?:to|on|at)\s+the\s+)?left(?:\s+side)?\s+of)|"
    r"(?P<right>(?:(?:to|on|at)\s+the\s+)?right(?:\s+side)?\s+of)|(?P<above>above|over|on\s+top\s+of|atop)|"
    r"(?P<below>below|underneath|under|beneath)|(?P<beside>next\s+to|beside|alongside|side\s+by\s+side\s+with))\s+"
)
_BETWEEN = (
    _words(
        r"^between\s+(?P<outer>.+?)(?:,\s*|\s+)(?:there\s+)?(?:stands?|is|are|sits?|lies|floats?|hovers?)\s+(?P<inner>.+)$"
    ),
    _words(r"^between\s+(?P<outer>.+?),\s*(?P<inner>.+)$"),
    _words(r"^(?P<inner>.+?)(?:\s+(?:stands?|is|are|sits?|lies))?\s+(?:in\s+)?between\s+(?P<outer>.+)$"),
)
_WITH_BETWEEN = _words(
    rf"^(?P<outer>.+),?\s+with\s+(?P<inner>(?:{_DET}\s|\{{).+?)\s+(?:in\s+)?between(?:\s+them)?\b(?P<rest>(?:[\s,.].*)?)$"
)
_BETWEEN_THEM = _words(r"\b(?:in\s+)?between\s+(?:them|the\s+two)\b|\bin\s+between\b(?=\s*(?:[,.;]|$))")
_NEXT = _words(rf"\s*(?:[,;.]\s*(?:and\b|plus\b)?|\band\b|\bplus\b|&|\bas\s+well\s+as\b)\s*(?=\b{_DET}\b|\{{)")
_COMMAS = _words(r"\s*(?:[,;]\s*(?:and\b)?|\band\b)\s*")
_SEVERAL = _words(r"(?:two|three|four|five|six|seven|eight|nine|ten|some|several)\b")
_HAVING = _words(r"\b(?:with|wearing|in|holding|has|dressed)\b")
_PHRASE_HEAD = _words(
    rf"^(?:{_DET})\s+([\w'-]+(?:\s+(?!(?:with|in|on|at|to|of|wearing|under|above|and\s+{_DET}|\w{{3,}}ing)\b)[\w'-]+)*)"
)
_LEFT_OVER = _words(
    r"(?:^(?:over|under|atop)|\b(?:left|right|above|below|beneath|underneath|between|opposite|either\s+side))\b"
    r"(?![\s-]+(?:hand|foot|arm|leg|eye|ear|wing|paw|shoulder)\b)"
)
_BEFORE = _words(
    r"^(?:[\s,;:.–—-]+|(?:and|while|with|plus|then|is|are|there(?:'s|\s+is|\s+are|\s+stands?)|"
    r"(?:we|you)\s+(?:can\s+)?see|shows?|facing|opposite)(?=\s|$))+"
)
_BEHIND = _words(r"(?:[\s,;:.]+|(?<=\s)(?:and|while|is|are|placed|located|positioned|situated)$)+$")

# What an entity has, rather than another entity: "wearing a hat and a scarf" is about one.
_BELONGINGS = frozenset(
    word for section in ("accessories", "garments", "parts") for word in SECTIONS[section].split()
) | {"face", "hair", "skin", "eyes", "eyebrows", "brows", "beard", "mustache", "moustache", "smile"}

Place = tuple[str | None, str | None]
"""Row and column: ``"top"``, ``"left"``, ``"middle"`` and so on; neither is told by a bare ``"in the middle"``."""
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_SAME = {"upper": "top", "lower": "bottom", "center": "middle", "centre": "middle"}
_EMPTY = "an empty background"
_SAY = (
    "give each subject one place ('a cube on the left and a ball on the right'), ask a language model "
    "(planner='https://...#model'), or write the regions by hand"
)


@dataclass(frozen=True)
class GrammarPlanner:
    """Divides plain spatial sentences, without a model.

    It knows sides and corners (``"X on the left, Y at the bottom right"``), relations (``"X above Y"``, ``"X between Y
    and Z"``), lists (``"from left to right: X, Y and Z"``, ``"in four corners"``) and unplaced lists, which stand side
    by side. Where the picture plays, and how it is made, goes into every region. Cells share rows and columns
    equally; corners that nobody names show the background.
    """

    def plan(self, prompt: str) -> Page:
        """Return the page of a prompt; one cell if it names one subject.

        Raises:
            CapriccioError: If the prompt is empty, or cannot be divided.
        """
        check_prompt(prompt)
        text = " ".join(prompt.split())
        told = _divided(_framed(text))
        if told.count <= 1:
            return Page(prompt=prompt, base=text, ratio="1", regions=(text,))
        ratio = join_ratio(Row(widths=(1.0,) * len(row)) for row in told.rows)
        regions = tuple(told.dressed(region) for row in told.rows for region in row)
        return Page(prompt=prompt, base=text, ratio=ratio, regions=regions)


@dataclass(frozen=True)
class _Told:
    """A sentence, as far as it has been read.

    Attributes:
        text: What is still to be divided.
        style: What stands before every region, ``"a painting of "``.
        settings: What stands behind every region.
        rows: Regions, row by row; ``""`` where nobody is.
    """

    text: str
    style: str = ""
    settings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    def dressed(self, region: str) -> str:
        """A region with style and settings."""
        text = self.style + (region or _EMPTY)
        for setting in self.settings:
            close = re.match(rf"(?:{_PREPOSITION}|under|against|with|\w+ing)\b", setting, re.IGNORECASE)
            text += f" {setting}" if close else f", {setting}"
        return text

    def set(self, setting: str) -> _Told:
        setting = _clean(setting)
        return replace(self, settings=(*self.settings, setting)) if setting else self


def _framed(text: str) -> _Told:
    """Take style and setting from the front of a sentence."""
    told = _Told(text)
    while True:
        if style := _STYLE.match(told.text):
            told = replace(told, text=told.text[style.end() :], style=told.style + style[0])
        elif setting := _leading(told.text):
            told = replace(told.set(_lowered(setting[1])), text=told.text[setting.end() :])
        else:
            return told


def _leading(text: str) -> re.Match[str] | None:
    if found := _LEADING.match(text):
        return found
    found = _LEADING_CLAUSE.match(text)
    patterns = (_PLACE, _RELATION, *_ARRANGED.values())
    return None if found is None or any(pattern.search(found[1]) for pattern in patterns) else found


def _divided(told: _Told) -> _Told:
    """Divide what is left of a sentence by the first kind of division that it names."""
    if (found := _WITH_BETWEEN.match(told.text)) and not _split(found["rest"])[1:] and len(_split(found["outer"])) == 2:
        return _between(told.set(found["rest"]), found)
    told = replace(told, text=_BETWEEN_THEM.sub("in the middle", told.text))
    for name, pattern in _ARRANGED.items():
        if found := pattern.search(told.text):
            return _arranged(told, name, found)
    places = list(_PLACE.finditer(told.text))
    if places:
        return _placed(told, places)
    for pattern in _BETWEEN:
        if found := pattern.match(told.text):
            return _between(told, found)
    relations = _relations(told.text)
    return _related(told, relations) if relations else _side_by_side(told)


# "from left to right: A, B and C"; "A, B, C and D in four corners"; "A and B"


def _arranged(told: _Told, name: str, found: re.Match[str]) -> _Told:
    rest = _OF_THE_PICTURE.sub("", told.text[found.end() :])
    before, behind = _clean(told.text[: found.start()]), _clean(rest)
    # A title ("three toys from left to right: ...") names nobody; what follows a list is its setting.
    if behind and (rest.lstrip().startswith(":") or not before):
        subjects = behind
    elif behind and _NEXT.match(f", {behind}"):
        if len(_split(before)) > 1 or not _SEVERAL.match(before):
            raise CapriccioError(f"{behind!r} comes without a place; {_SAY}.")
        subjects = behind
    else:
        told, subjects = told.set(behind), before
    told, entities = _listed(told, subjects, by_commas=True)
    if name == "quarters":
        if len(entities) != 4:
            raise CapriccioError(f"Four quarters are named, but {_count(entities)}: {_quoted(entities)}; {_SAY}.")
        return replace(told, rows=(tuple(entities[:2]), tuple(entities[2:])))
    if name.endswith("backwards"):
        entities.reverse()
    return replace(told, rows=_lined_up(entities, name.split()[0]))


def _side_by_side(told: _Told) -> _Told:
    word, (told, entities) = _LEFT_OVER.search(told.text), _listed(told, told.text)
    if len(entities) > 1 and word:
        raise CapriccioError(f"The word {word[0]!r} in the sentence cannot be followed; {_SAY}.")
    return replace(told, rows=(tuple(entities),))


def _lined_up(entities: Sequence[str], axis: str) -> tuple[tuple[str, ...], ...]:
    return (tuple(entities),) if axis == "columns" else tuple((entity,) for entity in entities)


# "A on the left and B on the right"; "in the top left A, in the bottom right B"


def _placed(told: _Told, found: list[re.Match[str]]) -> _Told:
    text = told.text
    bounds = [0, *(bound for place in found for bound in place.span()), len(text)]
    before, *between, behind = (text[bounds[at] : bounds[at + 1]] for at in range(0, len(bounds), 2))
    first_comes_the_place = (
        not _clean(before) or before.rstrip().endswith(":") or bool(re.match(rf"\s*(?:is\s+|are\s+)?{_DET}\b", behind))
    )
    if first_comes_the_place:
        chunks = [*between, behind]
        if before.strip() and not before.rstrip().endswith(":"):
            raise CapriccioError(f"{_clean(before)!r} comes without a place; {_SAY}.")
        told, chunks[-1] = _without_setting(told, chunks[-1])
    else:
        chunks = [before, *between]
        if re.match(rf"\s*,?\s*(?:and|plus)\s+{_DET}\b", behind, re.IGNORECASE):
            raise CapriccioError(f"{_clean(behind)!r} comes without a place; {_SAY}.")
        told = told.set(behind)
    for number, chunk in enumerate(chunks):
        told, chunks[number] = _one_sentence(told, chunk, 0 if first_comes_the_place else -1)
    entities = _shared_out([_clean(chunk) for chunk in chunks])
    if len(entities) == 1 and len(_split(entities[0])) == 1:
        return replace(told, rows=((entities[0],),))
    for entity in entities:
        _check_one_place(entity, alone=len(entities) == 1)
    return replace(told, rows=_grid([_place(match) for match in found], entities))


def _shared_out(chunks: list[str]) -> list[str]:
    """Give the second of "on the left a cube and a ball on the right" to the place behind it."""
    for at, (first, second) in enumerate(pairwise(chunks)):
        if not second and len(parts := _split(first)) == 2:
            chunks[at : at + 2] = parts
    if empty := [number for number, chunk in enumerate(chunks, 1) if not chunk]:
        raise CapriccioError(f"Place {empty[0]} of {len(chunks)} in the sentence has no subject; {_SAY}.")
    return chunks


def _check_one_place(entity: str, alone: bool) -> None:
    """Refuse what may be two entities of which one has no place: "a house, a cube on the left"."""
    parts = _split(entity)
    if len(parts) > 1 and (alone or not re.search(r"(?:\band|\bplus|&)\s*$", entity[: entity.rfind(parts[-1])])):
        raise CapriccioError(f"One place is named for {_quoted(parts)}; {_SAY}.")


def _one_sentence(told: _Told, chunk: str, at: int) -> tuple[_Told, str]:
    """Keep one sentence of several; the others, which name no place, are about the whole picture."""
    sentences = [one for one in re.split(r"(?<=[.!?])\s+", chunk.strip(" .,;")) if _clean(one)]
    for sentence in (one for one in sentences if one is not sentences[at]):
        told = told.set(sentence)
    return told, sentences[at] if sentences else ""


def _place(match: re.Match[str]) -> Place:
    words = [_SAME.get(word.lower(), word.lower()) for word in (match["first"], match["second"]) if word]
    row = next((word for word in words if word in ("top", "bottom")), None)
    column = next((word for word in words if word in ("left", "right")), None)
    if "middle" in words and len(words) == 2:
        row, column = row or "middle", column or "middle"
    return row, column


def _grid(places: Sequence[Place], entities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Put entities into rows and columns; a corner, side or middle that nobody names stays empty."""
    rows_named = {row for row, _ in places if row}
    corners = any(row and column for row, column in places)
    grid: dict[str, dict[str | None, list[str]]] = {}
    for (row, column), entity in zip(places, entities, strict=True):
        if not rows_named:
            cell: Place = "all", column or "middle"
        elif row:
            cell = row, column
        elif column is None:
            cell = "middle", None
        elif corners or len(rows_named) == 3:
            raise CapriccioError(f"{entity!r} stands at a side where others stand in corners; {_SAY}.")
        else:
            # "a sun at the top, a cube on the left and a ball on the right": the sides share the row that is left.
            free = [one for one in _ROWS if one not in rows_named]
            cell = free[-1] if len(free) == 1 or "bottom" in free else free[0], column
        row_cells = grid.setdefault(cell[0] or "", {})
        row_cells.setdefault(cell[1], []).append(entity)
    if not rows_named:
        return (_columns(grid["all"]),)
    names = _filled(grid.keys(), _ROWS)
    return tuple(_columns(grid[name]) if name in grid else ("",) for name in names)


def _columns(cells: dict[str | None, list[str]]) -> tuple[str, ...]:
    joined = {column: " and ".join(entities) for column, entities in cells.items()}
    if None in joined:
        if len(joined) > 1:
            raise CapriccioError(f"{joined[None]!r} has a row for itself, but shares it with others; {_SAY}.")
        return (joined[None],)
    names = _filled([column for column in joined if column], _COLUMNS)
    return tuple(joined.get(name, "") for name in names)


def _filled(named: Any, order: Sequence[str]) -> list[str]:
    """The names to divide by: both ends, and the middle if it is named; a middle alone is all there is."""
    if set(named) == {"middle"}:
        return ["middle"]
    return [name for name in order if name in named or name != "middle"]


# "A to the left of B"; "A above B"; "B between A and C"


def _between(told: _Told, found: re.Match[str]) -> _Told:
    told, outer = _listed(told, found["outer"])
    told, inner = _without_setting(told, found["inner"])
    if len(outer) != 2:
        raise CapriccioError(f"Something stands between, but {_count(outer)} at its sides: {_quoted(outer)}; {_SAY}.")
    return replace(told, rows=((outer[0], _clean(inner), outer[1]),))


def _relations(text: str) -> list[re.Match[str]]:
    """All relations of a text but those inside one entity, as a jacket over a shirt."""
    return [
        found
        for found in _RELATION.finditer(text)
        if not (_HAVING.search(text[: found.start()]) and _belongs(text[found.end() :]))
        and not re.match(_IN_A_SETTING, found[0].strip() + " " + text[found.end() :], re.IGNORECASE)
    ]


def _related(told: _Told, found: list[re.Match[str]]) -> _Told:
    kinds = {match.lastgroup or "" for match in found}
    if len(kinds) > 1:
        words = " and ".join(repr(match[0].strip()) for match in found)
        raise CapriccioError(f"The sentence says {words} at once; {_SAY}.")
    text, bounds = told.text, [0, *(bound for match in found for bound in match.span()), len(told.text)]
    groups: list[list[str]] = []
    for at in range(0, len(bounds), 2):
        told, entities = _listed(told, text[bounds[at] : bounds[at + 1]], last=at == len(bounds) - 2)
        groups.append(entities)
    if not all(groups):
        raise CapriccioError(f"Beside {found[0][0].strip()!r} stands no subject; {_SAY}.")
    if unclear := [one for group in groups for one in group if re.search(r"\b(?:both|each|they|it|which)$", one)]:
        raise CapriccioError(f"Who is meant in {unclear[0]!r} is unclear; {_SAY}.")
    (kind,) = kinds
    if kind in ("right", "below"):
        groups.reverse()
    if kind in ("above", "below"):
        return replace(told, rows=tuple(map(tuple, groups)))
    return replace(told, rows=(tuple(entity for group in groups for entity in group),))


# entities


def _listed(told: _Told, text: str, by_commas: bool = False, last: bool = True) -> tuple[_Told, list[str]]:
    """Split a list of entities; what stands behind the last one and is shared by all becomes setting."""
    if last and len(_split(text)) > 1 and (verb := list(_SHARED_VERB.finditer(text))):
        told, text = told.set(text[verb[-1].end() :]), text[: verb[-1].start()]
    elif last:
        told, text = _without_setting(told, text)
    parts = _split(text)
    if by_commas and len(parts) == 1:
        parts = [part for part in map(_clean, _COMMAS.split(text)) if part]
    return told, parts


def _split(text: str) -> list[str]:
    """The entities of a list: parted where a comma or "and" stands before an article, a number, or a name in braces."""
    parts, start = [], 0
    for found in _NEXT.finditer(text):
        if not (_HAVING.search(text[start : found.start()]) and _belongs(text[found.end() :])):
            parts.append(text[start : found.start()])
            start = found.end()
    return [part for part in map(_clean, (*parts, text[start:])) if part]


def _belongs(text: str) -> bool:
    """Whether a text begins with something worn or had, rather than with another entity."""
    head = _PHRASE_HEAD.match(text)
    return head is not None and head[1].split()[-1].lower() in _BELONGINGS


def _without_setting(told: _Told, text: str) -> tuple[_Told, str]:
    """Cut from a last entity where the picture plays, and how it is made."""
    starts = [found.start() for pattern in (_MANNER, _TRAILING) if (found := pattern.search(text))]
    if not starts or not _clean(text[: min(starts)]):
        return told, text
    return told.set(text[min(starts) :]), text[: min(starts)]


def _clean(text: str) -> str:
    text = _BEHIND.sub("", _BEFORE.sub("", text.strip()))
    return _lowered(text)


def _lowered(text: str) -> str:
    """Begin in lower case, unless with a name."""
    first, *_ = text.split(None, 1) or [""]
    known = first != text and re.fullmatch(rf"{_DET}|{_PREPOSITION}|under|against", first, re.IGNORECASE)
    return text[:1].lower() + text[1:] if known else text


def _count(entities: Sequence[str]) -> str:
    return "one subject" if len(entities) == 1 else f"{len(entities)} subjects"


def _quoted(entities: Sequence[str]) -> str:
    return ", ".join(map(repr, entities))
