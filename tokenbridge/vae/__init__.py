"""The VAE: the autoencoder between images and latents, its training, and its discriminator."""
