"""Peer transport over mutual TLS 1.3, gossip and block sync.

Knows bytes and peers, no contracts.
"""
