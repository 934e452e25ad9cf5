"""PBFT as pure code: one input in, an ordered list of effects out.

No socket, disk, clock, task, log or randomness lives here. Start reading at `replica.Replica.step`;
the README beside this file has the message table, the map and the invariants.
"""
