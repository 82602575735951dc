"""The small skeleton of people: where joints and features are, in closed form from the pose and the proportions.

Positions are in the frame of the figure: its middle is the origin, its height runs from -1 to 1, ``y`` runs down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin
from types import MappingProxyType

import torch
from torch import Tensor

from capriccio.world.people import Person, Pose, Sitter

Point = tuple[float, float]

KEYPOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip
"""The 18 body key points in the order of OpenPose (Cao et al. 2019, arXiv 1812.08008)."""
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Which key points a limb joins."""
LANDMARKS = ("right eye", "left eye", "nose", "right mouth corner", "left mouth corner")
"""The five points of a face that InstantID (arXiv 2401.07519) conditions on."""

HEAD = 0.335
"""Half height of a head."""
SHOULDERS, HIPS = 0.245, 0.115
"""Half distances of the joints of the mannequin on which garments are cut."""
NECK, WAIST = -0.27, 0.30
"""Heights of the neck and of the hip joints of a standing figure."""
ANKLE = 0.885

_UPPER_ARM, _FOREARM = 0.25, 0.23
_SIDES = {"right": -1.0, "left": 1.0}


@dataclass(frozen=True)
class Features:
    """Where the features of a face are: in half heights of the head round its centre, before the head is tilted."""

    width: float
    height: float
    apart: float
    eye: float
    """Radius of an eye."""
    eyes: Point
    """Half way between the eyes."""
    nose: Point
    mouth: Point
    smile: float
    """Half width of the mouth."""


def features(person: Person, turn: float = 0.0) -> Features:
    """Lay out a face that turns to the left (-1) or the right (1) of the picture."""
    shape = person.shape
    wide = {"round": 0.90, "oval": 0.80, "square": 0.84, "heart": 0.86}[person.face]
    tall = {"round": 0.88, "oval": 1.00, "square": 0.92, "heart": 0.96}[person.face]
    return Features(
        width=wide + 0.04 * shape[0],
        height=tall + 0.04 * shape[1],
        apart=0.36 + 0.05 * shape[2],
        eye=0.21 + 0.03 * shape[3],
        eyes=(0.20 * turn, 0.06),
        nose=(0.30 * turn, 0.30 + 0.03 * shape[4]),
        mouth=(0.22 * turn, 0.56 + 0.04 * shape[6]),
        smile=0.23 + 0.06 * shape[5],
    )


def joints(sitter: Sitter) -> Mapping[str, Point]:
    """Where the key points of somebody are, and ``"head"``, ``"hips"`` and the mouth corners beside them."""
    return _joints(sitter.person, sitter.pose)


@lru_cache(maxsize=256)  # every region of a body asks again
def _joints(person: Person, pose: Pose) -> Mapping[str, Point]:
    hips = (0.0, WAIST)
    neck = _turned((0.0, NECK), hips, pose.lean)
    head = _turned((0.0, -HEAD - 0.03), (0.0, 0.0), pose.lean + pose.tilt / 2)
    points = {"hips": hips, "neck": neck, "head": (neck[0] + head[0], neck[1] + head[1])}
    for side, sign in _SIDES.items():
        arm, leg = (pose.right_arm, pose.right_leg) if side == "right" else (pose.left_arm, pose.left_leg)
        shoulder = _turned((sign * breadth(person), NECK + 0.065), hips, pose.lean)
        hip = (sign * HIPS, WAIST)
        half = (ANKLE - WAIST) / 2
        elbow = _beside(shoulder, sign, arm[0], _UPPER_ARM)
        knee = _beside(hip, sign, leg[0], half)
        points |= {
            f"{side} shoulder": shoulder,
            f"{side} elbow": elbow,
            f"{side} wrist": _beside(elbow, sign, arm[1], _FOREARM),
            f"{side} hip": hip,
            f"{side} knee": knee,
            f"{side} ankle": _beside(knee, sign, leg[1], half),
        }
    drop = 0.0 if pose.name == "jumping" else ANKLE - max(points["right ankle"][1], points["left ankle"][1])
    placed = {name: (x, y + drop) for name, (x, y) in points.items()}
    return MappingProxyType({**placed, **_face(person, pose, placed["head"])})


def breadth(person: Person) -> float:
    """Half distance of somebody's shoulder joints."""
    return SHOULDERS + 0.015 * person.shape[9] + (0.01 if person.kind == "man" else -0.01)


def keypoints(sitter: Sitter) -> tuple[Tensor, Tensor]:
    """Key points in the picture.

    Returns:
        (18, 2): x and y as fractions of the picture in the order of ``KEYPOINTS``; (18,) bool: inside the picture.
    """
    return _in_picture(sitter, KEYPOINTS)


def landmarks(sitter: Sitter) -> tuple[Tensor, Tensor]:
    """Points of the face in the picture, as ``keypoints`` returns them, in the order of ``LANDMARKS``."""
    return _in_picture(sitter, LANDMARKS)


def _in_picture(sitter: Sitter, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    known = joints(sitter)
    places = torch.tensor([known[name] for name in names]) * (sitter.size / 2)
    points = places + torch.tensor([sitter.x, sitter.y])
    return points, ((points >= 0) & (points <= 1)).all(1)


def _face(person: Person, pose: Pose, head: Point) -> dict[str, Point]:
    """Key points of the face in the frame of the figure."""
    face = features(person, pose.turn)
    tilt = pose.lean + pose.tilt
    local = {"nose": face.nose}
    for side, sign in _SIDES.items():
        local[f"{side} eye"] = (face.eyes[0] + sign * face.apart, face.eyes[1])
        local[f"{side} ear"] = (sign * face.width - 0.06 * pose.turn, 0.12)
        local[f"{side} mouth corner"] = (face.mouth[0] + sign * face.smile, face.mouth[1])
    turned = {name: _turned(point, (0.0, 0.0), tilt) for name, point in local.items()}
    return {name: (head[0] + HEAD * x, head[1] + HEAD * y) for name, (x, y) in turned.items()}


def _beside(start: Point, sign: float, angle: float, length: float) -> Point:
    return start[0] + sign * length * sin(angle), start[1] + length * cos(angle)


def _turned(point: Point, centre: Point, angle: float) -> Point:
    """A point turned round a centre by ``angle`` radians clockwise on the picture."""
    x, y = point[0] - centre[0], point[1] - centre[1]
    return centre[0] + x * cos(angle) - y * sin(angle), centre[1] + x * sin(angle) + y * cos(angle)
