"""JSON-RPC, WebSocket events, health and metrics on loopback, and the typed client."""
