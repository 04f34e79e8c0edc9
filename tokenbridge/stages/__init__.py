"""Stages: one thin module for each stage of dvc.yaml, and what all stages share."""
