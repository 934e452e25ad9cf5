"""Federated search: hospitals ask each other what they hold, and policy decides what each may see.

What is richer than the words on the chain stays with its custodian and is answered from there, over
the exchange's mutual TLS; a result carries the study's id on the chain, by which all that follows
(request, grant, fetch, verification) is done. Imaging stays where it is; so do counts of few.
"""
