"""From images to latents and back: the autoencoder, its training and its discriminator."""
