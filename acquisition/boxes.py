"""The region that no point of a front dominates, as disjoint boxes: at most 2n + 1 up to m = 3.

Everything is maximised; a box may reach to infinity. Two objectives are strips; three are swept
from the top, so that a strip stays one box until a point changes it (Yang, Emmerich, Deutz and Bäck
2019, section 4); four are slabs of three, in which a box goes on as long as it stays the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_Box = tuple[tuple[float, ...], tuple[float, ...]]

INF = float("inf")
MOST_OBJECTIVES = 4


def nondominated_boxes(Y: Array, reference: Array) -> tuple[Array, Array]:
    """Lower and upper corners, `b x m` each, of what lies above the reference and no row dominates.

    Args:
        Y: `n x m` points, m at most `MOST_OBJECTIVES`; dominated ones and those not above the
            reference are allowed, n may be 0.
        reference: `m`.
    """
    above = Y[(reference < Y).all(axis=1)]
    boxes = _BY_OBJECTIVES[len(reference)]([tuple(y) for y in above.tolist()], reference.tolist())
    corners = np.array(boxes, dtype=np.float64).reshape(len(boxes), 2, len(reference))
    full = (corners[:, 1] > corners[:, 0]).all(axis=1)
    return corners[full, 0], corners[full, 1]


def _one(points: list[tuple[float, ...]], reference: list[float]) -> list[_Box]:
    return [((max([*reference, *(p[0] for p in points)]),), (INF,))]


def _two(points: list[tuple[float, ...]], reference: list[float]) -> list[_Box]:
    boxes: list[_Box] = []
    right, floor = INF, reference[1]
    for x, y in sorted(points, reverse=True):
        if y > floor:
            boxes.append(((x, floor), (right, INF)))
            right, floor = x, y
    boxes.append(((reference[0], floor), (right, INF)))
    return boxes


def _three(points: list[tuple[float, ...]], reference: list[float]) -> list[_Box]:
    boxes: list[_Box] = []
    # Strips from left to right: (left, right, floor, top); floors fall.
    strips = [(reference[0], INF, reference[1], INF)]
    for x, y, z in sorted(points, key=lambda p: p[2], reverse=True):
        kept: list[tuple[float, float, float, float]] = []
        first = None
        for strip in strips:
            left, right, floor, top = strip
            if floor >= y or left >= x:
                kept.append(strip)
                continue
            if first is None:
                first = left
                kept.append((left, x, y, z))
            boxes.append(((left, floor, z), (min(right, x), INF, top)))
            if right > x:
                kept.append((x, right, floor, top))
        strips = kept
    bottom = reference[2]
    return boxes + [((a, f, bottom), (b, INF, top)) for a, b, f, top in strips]


def _four(points: list[tuple[float, ...]], reference: list[float]) -> list[_Box]:
    boxes: list[_Box] = []
    ordered = sorted(points, key=lambda p: p[3], reverse=True)
    tops = dict.fromkeys(_three([], reference), INF)
    for i, point in enumerate(ordered):
        now = set(_three([p[:3] for p in ordered[: i + 1]], reference))
        for box in [box for box in tops if box not in now]:
            boxes.append(_raised(box, point[3], tops.pop(box)))
        for box in now:
            tops.setdefault(box, point[3])
    return boxes + [_raised(box, reference[3], top) for box, top in tops.items()]


def _raised(box: _Box, bottom: float, top: float) -> _Box:
    return (*box[0], bottom), (*box[1], top)


_BY_OBJECTIVES = {1: _one, 2: _two, 3: _three, 4: _four}
