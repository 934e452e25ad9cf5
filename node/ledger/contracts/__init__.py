"""Native contracts, one module each; `table` holds them all, `base` says what a contract is."""
