"""How long a test waits for what must happen. Machines differ in speed, so only what hangs is given up."""

PATIENCE = 600  # seconds
