"""The team's stack without Docker: its servers as processes of this machine, under supervisor."""
