"""What one file and one folder may cost. A file beyond a limit is refused, never half read."""

from dataclasses import dataclass

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on input; the defaults fit what modalities and archives really write."""

    files_max: int = 100_000  # in one call
    file_bytes_max: int = 16 * GIBIBYTE
    inflated_bytes_max: int = 2 * GIBIBYTE
    # Deflate reaches 1,032:1; real images stay below 20:1, blank ones of a few megabytes may not.
    inflated_free_bytes: int = 64 * MEBIBYTE
    inflation_ratio_max: int = 100
    spool_bytes: int = 32 * MEBIBYTE  # inflated data beyond this goes to an unnamed temporary file
    whole_bytes_max: int = 16 * MEBIBYTE  # smaller files are read at once
    depth_max: int = 64  # nested items
    elements_max: int = 1_000_000  # in one file, all levels together
    level_elements_max: int = 20_000  # in one item
    fragments_max: int = 500_000
    frames_max: int = 500_000
    inline_bytes_max: int = MEBIBYTE  # longer values are streamed
    text_bytes_max: int = 16 * MEBIBYTE
    # A compressed frame, and what it decodes to; beyond it P commits to the compressed payload.
    frame_bytes_max: int = 48 * MEBIBYTE
    # What all frames decode to, with the same consequence: as much as a native file may have, so
    # that no encoding of such an image is compared in another way.
    decoded_bytes_max: int = 16 * GIBIBYTE


LIMITS = Limits()
CHUNK_BYTES = MEBIBYTE
