"""Points in a plane: those on their front, and the outline around some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Place: TypeAlias = tuple[float, float]


def front_of(points: Sequence[Place]) -> list[int]:
    """Return which points no other one betters in one coordinate without being worse in the other, by the first one.

    Example:
        >>> front_of([(0.6, 0.9), (0.7, 0.8), (0.7, 0.5), (0.8, 0.6)])
        [0, 1, 3]
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index], reverse=True):
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found[::-1]


def outline_of(points: Sequence[Place]) -> list[Place]:
    """Return the corners of the smallest convex area that holds some points, counter-clockwise.

    Example:
        >>> outline_of([(0, 0), (2, 0), (1, 1), (2, 2), (0, 2)])
        [(0, 0), (2, 0), (2, 2), (0, 2)]
    """
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered
    return [*_half(ordered)[:-1], *_half(ordered[::-1])[:-1]]


def _half(ordered: Sequence[Place]) -> list[Place]:
    """Return the lower border of some points from left to right (Andrew's monotone chain)."""
    found: list[Place] = []
    for point in ordered:
        while len(found) > 1 and _turn(found[-2], found[-1], point) <= 0:
            found.pop()
        found.append(point)
    return found


def _turn(first: Place, second: Place, third: Place) -> float:
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])
