"""What everything stands on: each module is one thing that many need, and imports nothing of ours above it."""
