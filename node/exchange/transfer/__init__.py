"""The transfer of encrypted studies between hospitals: who serves, who fetches, what survives.

Import from the defining modules: `server.ExchangeServer` with what it needs in `ports`,
`client.fetch`, `state` for deliveries and transfers on disk, `offer` for what travels first.
"""
