"""Requirements 11 and 12: nothing that a node, gateway or message shows leads to a patient."""
