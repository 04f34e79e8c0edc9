"""One thin module for each stage of dvc.yaml."""
