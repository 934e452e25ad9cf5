"""Native contracts, one module each."""
