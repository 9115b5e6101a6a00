"""What several training tasks share.

diffusion         the diffusion loss, and the samples of an encoded set (dit, text-projection)
conditioning      which tokens of a sample are given clean (dit, text-projection)
lora              low-rank adapters (dit)
vae               the loss of a variational autoencoder, and its latent statistics (video-vae, audio-vae)
clips             crops of a curated set's clips: pixels or sound (video-vae, audio-vae, vocoder, upscaler)
errors            errors per sample: edges, pyramid, PSNR
perceptual        perceptual distance of pictures, LPIPS (video-vae)
adversary         discriminators and their training (video-vae, audio-vae, vocoder)
adaptive_weight   the weight of the adversarial loss of a VAE
frozen            a module that a task uses but does not train
random_draws      random draws as functions of seed, sample id and step
statistics        mean and standard deviation over a set and all ranks
flops             operations of a convolutional model
"""
