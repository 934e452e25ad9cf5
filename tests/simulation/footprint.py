"""How much a replica holds in memory, whatever its shape."""

from collections import deque
from collections.abc import Mapping
from typing import Any

_LEAVES = (int, float, str, bytes, bool, type(None), type)


def footprint(root: object) -> int:
    """Return the number of values reachable through containers and consensus objects."""
    seen: set[int] = set()
    count = 0
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        count += 1
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            stack.extend(value.keys())
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset | deque):
            stack.extend(value)
        elif type(value).__module__.startswith("consensus"):
            stack.extend(vars(value).values() if hasattr(value, "__dict__") else ())
            for name in _slots(type(value)):
                if hasattr(value, name):
                    stack.append(getattr(value, name))
    return count


def _slots(kind: type) -> list[str]:
    return [name for base in kind.__mro__ for name in base.__dict__.get("__slots__", ())]
