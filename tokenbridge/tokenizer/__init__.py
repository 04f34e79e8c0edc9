"""From latents to tokens and back: the quantizer, its levels, and the moments and tokens on disk."""
