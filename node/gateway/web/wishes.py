"""How a picture is wanted: the query of a rendered or thumbnail resource (PS3.18 §8.3.5). Pure."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

from node.gateway.web.errors import Problem

SIDE_MAX = 8_192  # pixels
THUMBNAIL_SIDE = 200
_FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
# Allowed and without effect: there are no annotations to draw, and colours are given as they are.
_IGNORED = frozenset({"annotation", "iccprofile", "accept"})


def read_wishes(
    parameters: Iterable[tuple[str, str]], kind: str, thumbnail: bool
) -> dict[str, Any]:
    """Return the wishes that `node.gateway.web.render.picture` takes; raises `Problem` 400."""
    wishes: dict[str, Any] = {"media": kind}
    for name, value in parameters:
        if name == "viewport":
            _viewport(wishes, value)
        elif name == "window" and not thumbnail:
            wishes["window"] = _window(value)
        elif name == "quality":
            quality = _numbers(value)
            if len(quality) != 1 or not 1 <= quality[0] <= 100:
                raise _bad("quality is a number from 1 to 100")
            wishes["quality"] = int(quality[0])
        elif name not in _IGNORED:
            raise _bad("a parameter is none of viewport, window and quality")
    if thumbnail:
        wishes.setdefault("size", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return wishes


def _viewport(wishes: dict[str, Any], text: str) -> None:
    numbers = _numbers(text)
    if len(numbers) not in (2, 6) or any(number != int(number) for number in numbers):
        raise _bad("viewport is width,height or width,height,x,y,width,height in whole pixels")
    if not all(1 <= number <= SIDE_MAX for number in numbers[:2]):
        raise _bad(f"viewport is from 1 to {SIDE_MAX} pixels wide and high")
    wishes["size"] = int(numbers[0]), int(numbers[1])
    if len(numbers) == 6:
        x, y, width, height = (int(number) for number in numbers[2:])
        if x < 0 or y < 0 or width < 1 or height < 1:
            raise _bad("the region of a viewport lies inside the image; it is not mirrored here")
        wishes["region"] = x, y, width, height


def _window(text: str) -> tuple[float, float, str]:
    center, _, rest = text.partition(",")
    width, _, function = rest.partition(",")
    numbers = _numbers(f"{center},{width}")
    word = _FUNCTIONS.get(function.lower() or "linear")
    if word is None or numbers[1] <= 0:
        raise _bad("window is center,width,function: linear, linear-exact or sigmoid")
    return numbers[0], numbers[1], word


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise _bad("a parameter has no number where one belongs") from None
    if len(text) > 200 or not all(isfinite(n) and abs(n) < 1e9 for n in numbers):
        raise _bad("a parameter has a number that is out of range")
    return numbers


def _bad(sentence: str) -> Problem:
    return Problem(400, "bad_parameter", sentence)
