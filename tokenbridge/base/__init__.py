"""The lowest layer: each module does one thing that many packages need, and imports none of those packages."""
