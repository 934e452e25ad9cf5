"""A seeded simulator of the production replica among faults. Start reading at `world.run`.

One seed decides everything: the number of validators, who is Byzantine and how, the network's and
the disks' manners, who crashes when. Time is virtual. `python -m tests.simulation --help`.
"""
