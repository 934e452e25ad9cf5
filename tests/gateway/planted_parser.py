"""The parsing process with a decoder in which images of certain sizes do what bad codecs do."""

import ctypes
import os
import time

from node.gateway.fence import serve
from node.gateway.parser import answers
from node.imaging import pixels

ABORTS, EATS, HANGS, LACKS = 21, 22, 23, 24  # rows
_PIECE_BYTES = 16 << 20


def eat():
    """Allocate as native code does that looks at no result: it writes to what it did not get."""
    c = ctypes.CDLL(None)
    c.malloc.restype = ctypes.c_void_p
    while True:
        c.memset(ctypes.c_void_p(c.malloc(_PIECE_BYTES)), 1, _PIECE_BYTES)


def hang():
    while True:
        time.sleep(3_600)


def lack():
    raise MemoryError


DOES = {LACKS: lack, ABORTS: os.abort, EATS: eat, HANGS: hang}


class Planted:
    is_available = True

    def __init__(self, real):
        self.real = real

    def as_array(self, encoded, **options):
        DOES.get(options["rows"], int)()
        return self.real.as_array(encoded, **options)


def main():
    real = pixels.get_decoder
    pixels.get_decoder = lambda uid: Planted(real(uid))
    serve(answers)


if __name__ == "__main__":
    main()
