"""Events for human eyes."""

from collections.abc import Callable

from consensus.messages import NewView, PreparedCertificate, SealCertificate, ViewChange


class Tracer:
    """Prints one line per event: time, place, text."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def show(self, now: float, place: int, text: str, values: tuple[object, ...]) -> None:
        """Print an event; `text` is a %-format for `values`."""
        where = f"[{place}]" if place >= 0 else "[*]"
        self._write(f"{now:10.2f} {where:>4} {text % tuple(map(brief, values))}")


def brief(value: object) -> object:
    """Return a short form of a message or digest; other values as they are."""
    match value:
        case bytes():
            return value.hex()[:8] if len(value) <= 64 else f"{len(value)} bytes"
        case SealCertificate(height, header, seals):
            return f"sealed({height} {brief(header)} by {[sender for sender, _ in seals]})"
        case PreparedCertificate(pre_prepare, prepares):
            return f"prepared({brief(pre_prepare)} by {[sender for sender, _ in prepares]})"
        case ViewChange(view, stable, prepared, sender):
            certificates = ", ".join(str(brief(p)) for p in prepared)
            return f"ViewChange({view} from {sender}: {brief(stable)}; {certificates})"
        case NewView(view, view_changes, pre_prepares, sender):
            begins = ", ".join(f"{p.height}:{brief(p.digest)}" for p in pre_prepares)
            return f"NewView({view} from {sender}: {[v.sender for v in view_changes]}; {begins})"
    name = type(value).__name__
    names = [n for n in getattr(value, "__slots__", ()) if n != "signature"]
    if not names:
        return value
    return f"{name}({' '.join(str(brief(getattr(value, n))) for n in names)})"
