"""The bounds that all nodes of a chain share: consensus parameters, fixed by the genesis."""

from dataclasses import dataclass, fields

HEIGHT_MAX = 2**53  # exact in JSON and JavaScript too; the same bound as in consensus.messages
TIME_MS_MAX = 2**53  # milliseconds since 1970


@dataclass(frozen=True, slots=True)
class Limits:
    """What one transaction and one batch may hold. Upper bounds are inclusive."""

    transaction_bytes_max: int = 65_536
    operations_max: int = 256  # in one transaction
    batch_transactions_max: int = 2_000
    batch_bytes_max: int = 4 * 1024 * 1024  # sum over the encoded transactions of a batch
    validity_heights_max: int = 20_000  # W: how far ahead `valid_until` may lie

    def problems(self) -> list[tuple[str, str]]:
        """Return (name, what is wrong) for each value outside the bounds of the protocol."""
        found = []
        for name, (low, high) in LIMIT_BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                found.append((name, f"must be an integer from {low} to {high}"))
        if not found and self.batch_bytes_max < self.transaction_bytes_max:
            found.append(("batch_bytes_max", "must be at least transaction_bytes_max"))
        return found


LIMIT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Limits))

# The least values keep one ordinary registration possible; the greatest keep a batch, its message
# and its execution within what a small node can hold in memory.
LIMIT_BOUNDS: dict[str, tuple[int, int]] = {
    "transaction_bytes_max": (1_024, 1024 * 1024),
    "operations_max": (1, 4_096),
    "batch_transactions_max": (1, 10_000),
    "batch_bytes_max": (1_024, 16 * 1024 * 1024),
    "validity_heights_max": (10, 1_000_000),
}
