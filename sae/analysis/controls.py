"""Controls: what an autoencoder must beat, each written as an autoencoder, so that the same analyses apply to it.

| control | latents | x_hat |
|---|---|---|
| `identity` | the pixels | x |
| `signed_identity` | ReLU of the pixels and of their negatives, W_dec = [I; -I] | x |
| `pca` | coordinates on the first principal components | the projection on them |
| `k_means` | 1 for the nearest centroid, 0 for the others | that centroid |
| `blur` | the pixels | x convolved with a Gaussian |
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from sae.analysis.members import stack
from sae.core.model import Sae
from sae.core.types import Array, UserError, definition
from sae.methods.activations import Relu
from sae.methods.contract import Activation


@definition
class Linear(Activation):
    """No nonlinearity: latents are the pre-activations."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """[d_sae, batch] -> the same."""
        return pre_acts


@definition
class Nearest(Activation):
    """1 for the largest pre-activation of each example, 0 for the others."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """[d_sae, batch] -> [d_sae, batch], one 1 per column."""
        return jax.nn.one_hot(jnp.argmax(pre_acts, axis=0), pre_acts.shape[0], axis=0)


def identity(d_in: int) -> Sae:
    """x_hat = x."""
    eye = jnp.eye(d_in)
    return Sae(eye, jnp.zeros(d_in), eye, jnp.zeros(d_in), Linear())


def signed_identity(d_in: int) -> Sae:
    """x_hat = relu(x) - relu(-x) = x: the one-to-one mapping that a wide ReLU autoencoder can fall into."""
    both = jnp.concatenate([jnp.eye(d_in), -jnp.eye(d_in)])
    return Sae(both, jnp.zeros(2 * d_in), both, jnp.zeros(d_in), Relu())


def pca(train: np.ndarray, rank: int) -> Sae:
    """The projection on the first `rank` principal components of train [n, d_in]; rank 0 gives the mean."""
    return _truncated(*_components(train), rank)


def pca_of_each_rank(train: np.ndarray) -> Sae:
    """PCA of rank 0, 1, ..., d_in, stacked [d_in + 1, ...]: the components beyond a rank are zero rows."""
    components, mean = _components(train)
    return stack([_truncated(components, mean, rank) for rank in range(len(components) + 1)])


def k_means(train: np.ndarray, k: int, seed: int = 0) -> Sae:
    """x_hat is the nearest of k centroids of train [n, d_in], which scikit-learn finds.

    With y = x - mean and c = centroid - mean, the nearest centroid has the largest c·y - ‖c‖²/2 = W_enc y + b_enc.
    """
    train = np.asarray(train, np.float32)
    found = KMeans(n_clusters=k, n_init=4, random_state=seed).fit(train)
    mean = np.mean(train, axis=0, dtype=np.float64)
    c = found.cluster_centers_ - mean
    half = -0.5 * np.sum(c**2, axis=1)
    W, b_enc, b_dec = (jnp.asarray(value, jnp.float32) for value in (c, half, mean))
    return Sae(W, b_enc, W, b_dec, Nearest())


def blur(image_shape: tuple[int, ...], sigma: float) -> Sae:
    """x convolved with a Gaussian of standard deviation sigma pixels, reflected at the borders (scipy.ndimage)."""
    if len(image_shape) not in (2, 3):
        raise UserError(f"blur: got image_shape {image_shape}, allowed: (height, width) or (height, width, channels)")
    d_in = int(np.prod(image_shape))
    points = np.eye(d_in).reshape(d_in, *image_shape)  # an image of each single pixel
    blurred = scipy.ndimage.gaussian_filter(points, (0, sigma, sigma, 0)[: 1 + len(image_shape)])
    W_dec = jnp.asarray(blurred.reshape(d_in, d_in), jnp.float32)
    return Sae(jnp.eye(d_in), jnp.zeros(d_in), W_dec, jnp.zeros(d_in), Linear())


def _components(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(principal components [min(n, d_in), d_in] in the order of falling variance, mean [d_in])."""
    found = PCA().fit(np.asarray(train, np.float64))
    return found.components_.astype(np.float32), found.mean_.astype(np.float32)


def _truncated(components: np.ndarray, mean: np.ndarray, rank: int) -> Sae:
    if not 0 <= rank <= len(components):
        raise UserError(f"pca: got rank {rank}, allowed: 0 to {len(components)}")
    W = jnp.asarray(components * (np.arange(len(components)) < rank)[:, None])
    return Sae(W, jnp.zeros(len(components)), W, jnp.asarray(mean), Linear())
