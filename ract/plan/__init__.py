"""The plan file: its schema, what is derived from it, and the graph of nodes it stands for. No torch here."""
