"""Pictures of a trained model for people: samples, edits, a server."""
