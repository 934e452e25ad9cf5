"""Conditions of access policies: what they may ask, how they are checked and evaluated."""
