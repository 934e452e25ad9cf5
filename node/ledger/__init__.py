"""Transactions, blocks, contracts, receipts, state transition, mempool."""
