"""From latents to tokens and back: the quantizer, its levels, and what both are stored as."""
