"""The benchmark suite, which ``make bench`` runs. ``python -m benchmarks.report`` writes its tables."""
