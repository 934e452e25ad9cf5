"""LevelDB behind one narrow interface: bytes in, bytes out. No meaning of a block or study here."""
