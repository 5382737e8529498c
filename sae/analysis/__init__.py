"""What a trained autoencoder does: one file per question, for notebooks and for the measures of a sweep.

| file | question |
|---|---|
| `denoising` | does it remove noise, blobs and aberrant pixels? |
| `one_latent` | does one latent stand for a whole output? |
| `copying` | is it a one-to-one mapping of pixels? |
| `small_latents` | how many of the active latents are small? |
| `recovery` | how alike are two dictionaries, and how much does L1 shrink what it recovers? |
| `gabor` | are the decoder rows Gabor-like? |
| `absorption` | do the latents of child features absorb their parents? |
| `refit` | how much of the error is wrong magnitudes on the right latents? |
| `sources` | to which sources does a crosscoder's latent write? |
| `agreement` | do dictionaries of other seeds, widths and methods agree? |
| `truth` | do the latents stand for the true features of synthetic data? |

`controls` has PCA, k-means, blur and the identity, written as autoencoders, so that every question can be put to them.
`members` puts a question to many autoencoders at once, `ask` to all members of a run.

Functions take one autoencoder (`sae.load(DIR).sae(i)`) and raw rows [n, d_in]; `members.each` maps a function over
stacked autoencoders. The measures of a sweep give them `model.on_examples(sae)` and normalized examples instead.
"""
