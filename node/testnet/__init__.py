"""Several nodes in one process or as processes of their own, for tests and trials."""
