"""Pictures from a trained model, for people: samples, edits, and a model server."""
