"""Where directions and latents come from: sparse autoencoders on disk, label files, contrasts of two sets."""
