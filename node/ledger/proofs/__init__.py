"""Proof files: one statement about the chain that verifies offline, from the genesis alone.

`format` is the bytes, `verify` decides (pure, no IO), `make` builds out of a store's snapshot, and
`describe` says in words what was proved. docs/developers/proof-format.md is the specification.
"""
