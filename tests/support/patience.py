"""How long a test waits for what must happen: only what hangs is ever given up, for machines differ in speed."""

PATIENCE = 600  # seconds
