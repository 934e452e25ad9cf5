"""What stands between this hospital's imaging equipment and the ledger."""
