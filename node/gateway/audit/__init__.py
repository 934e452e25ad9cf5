"""The audit trail: what happened at the gateway, in order, provable, and sent to the hospital's
audit repository. `README.md` says what is kept of whom, and why."""
