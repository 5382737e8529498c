"""What a trained autoencoder does, asked in a notebook: one file per question, on `sae.load(DIR).sae(i)` and arrays.

| file | asks |
|---|---|
| `denoising` | does it take out noise, blobs and aberrant pixels? |
| `one_latent` | does one latent stand for a whole output? |
| `copying` | is it a one-to-one mapping of pixels? |
| `small_latents` | how many of the active latents are small? |
| `recovery` | how alike are two dictionaries, and how much does L1 shrink what it recovers? |
| `gabor` | are the decoder rows Gabor-like? |
| `controls` | PCA, k-means, blur and the identity, written as autoencoders, so that every question can be put to them |
| `members` | the same question to many autoencoders at once |

Functions are of one autoencoder and examples as rows [n, d_in]; `members.each` maps them over stacked ones.
"""
