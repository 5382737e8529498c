"""Linear probes: logistic regressions on columns of numbers, many problems at once on the device.

A problem is a yes-or-no question of every row. It has an answer `y` in {-1, 1} and a weight for every row; rows of
weight 0 take no part, so that problems on different rows are solved together. Weights of `balanced` give both answers
one half each: a probe that knows nothing is right with probability 1/2.
"""

import functools

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from flax import struct

from sae.core.model import matmul
from sae.core.types import Array

RIDGE = 0.01  # the L2 penalty of every probe, on standardized columns and a loss that is a mean over rows
NEWTON_STEPS = 8
GRADIENT_STEPS = 100
POWER_STEPS = 12  # of the power iteration that finds the step of the gradient
LENGTHS = (1.0, 0.3, 0.0)  # shares of Newton's step: the longest is taken that is as good as any
ROUNDING = 1e-6  # by which two losses may differ and be as good: near the minimum, float32 cannot tell them apart


@struct.dataclass
class Problems:
    """p problems on the same n rows."""

    y: Array  # [p, n] -1 or 1
    train: Array  # [p, n] weights of rows in fitting, whose sum is 1
    test: Array  # [p, n] weights of rows in the accuracy, whose sum is 1


def balanced(y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weights [p, n] of the rows [p, n] bool that give both answers y [p, n] one half; 0 for all others."""
    weights = np.zeros(y.shape, np.float32)
    for answer in (-1, 1):
        chosen = rows & (y == answer)
        weights += chosen * (0.5 / np.maximum(chosen.sum(1, keepdims=True), 1))
    return weights


def best_columns(F: Array, problems: Problems, k: int) -> Array:
    """[p, k] the columns of F [n, d] with the largest difference of class means in training, the largest first.

    Gurnee et al. 2023, arXiv 2305.01610, call it max mean difference. Equal ones are taken in their order.
    """
    gap = matmul(problems.y * problems.train, F)  # half the difference, as each class has one half of the weight
    return jax.lax.top_k(jnp.abs(gap), k)[1]


def few(F: Array, chosen: Array, problems: Problems, ks: tuple[int, ...]) -> tuple[Array, Array]:
    """Probes on the first k columns of chosen [p, most] of F [n, d], for each k of `ks`.

    Gives (scores [ks, p, n], coefficients [ks, p, most + 1], 0 beyond k and the bias last). The coefficients are those
    of columns with mean 0 and standard deviation 1 over the weighted training rows. They minimize
    Σ_n train_n log(1 + exp(-y_n score_n)) + RIDGE/2 Σ coefficient², without the bias, by Newton's method.
    """
    most, w = chosen.shape[1], problems.train[:, None, :]
    z = F.T[chosen]  # [p, most, n]
    z = z - jnp.sum(w * z, axis=2, keepdims=True)
    deviation = jnp.sqrt(jnp.sum(w * z**2, axis=2, keepdims=True))
    z = jnp.concatenate([z / jnp.maximum(deviation, 1e-12), jnp.ones_like(z[:, :1])], axis=1)
    ridge = jnp.full(most + 1, RIDGE).at[-1].set(0.0)
    solid = jnp.diag(ridge + 1e-7)  # where the bias alone decides, its curvature may be 0
    lengths = jnp.array(LENGTHS)[:, None, None]
    product = functools.partial(jnp.einsum, precision="highest")

    def fit(_: None, used: Array) -> tuple[None, tuple[Array, Array]]:
        columns = z * used[:, None]

        def step(_: Array, beta: Array) -> Array:
            score = product("pkn,pk->pn", columns, beta)
            yes = jax.nn.sigmoid(score)
            gradient = product("pn,pkn->pk", problems.train * (yes - (problems.y > 0)), columns) + ridge * beta
            bend = (problems.train * yes * (1 - yes))[:, None, :]
            hessian = product("pkn,pln->pkl", columns * bend, columns) + solid
            move = -jsp.linalg.cho_solve((jnp.linalg.cholesky(hessian), True), gradient[:, :, None])[:, :, 0]
            scores = score + lengths * product("pkn,pk->pn", columns, move)
            losses = jnp.sum(problems.train * jax.nn.softplus(-problems.y * scores), axis=2)
            losses = losses + 0.5 * jnp.sum(ridge * (beta + lengths * move) ** 2, axis=2)
            longest = jnp.argmax(losses <= jnp.min(losses, axis=0) + ROUNDING, axis=0)
            return beta + jnp.array(LENGTHS)[longest][:, None] * move

        beta = jax.lax.fori_loop(0, NEWTON_STEPS, step, jnp.zeros((len(z), most + 1)))
        return None, (product("pkn,pk->pn", columns, beta), beta)

    used = jnp.array([[float(i < k or i == most) for i in range(most + 1)] for k in ks])
    return jax.lax.scan(fit, None, used)[1]


def all_columns(F: Array, problems: Problems) -> tuple[Array, Array]:
    """Probes on all columns of F [n, d]: (scores [p, n], directions [p, d] in the units of F).

    The loss of `few`, by GRADIENT_STEPS steps of Nesterov's accelerated gradient, whose length is the
    inverse of an estimate of the largest curvature. A column that is constant in training has coefficient 0.
    """
    w = problems.train
    mean = matmul(w, F)  # [p, d]
    deviation = jnp.sqrt(jnp.maximum(matmul(w, F**2) - mean**2, 0.0))
    seen = deviation > 1e-6 * (jnp.abs(mean) + jnp.max(deviation, axis=1, keepdims=True))
    unit = jnp.where(seen, 1 / jnp.where(seen, deviation, 1.0), 0.0)

    def scores(beta: Array) -> Array:
        v = beta * unit
        return matmul(v, F.T) - jnp.sum(v * mean, axis=1, keepdims=True)

    def back(r: Array) -> Array:
        return unit * (matmul(r, F) - mean * jnp.sum(r, axis=1, keepdims=True))

    def power(_: Array, v: Array) -> Array:
        new = back(w * scores(v))
        return new / jnp.maximum(jnp.linalg.norm(new, axis=1, keepdims=True), 1e-30)

    start = jax.random.normal(jax.random.key(0), mean.shape)
    top = jax.lax.fori_loop(0, POWER_STEPS, power, start / jnp.linalg.norm(start, axis=1, keepdims=True))
    largest = jnp.sum(top * back(w * scores(top)), axis=1, keepdims=True)
    length = 1 / (0.25 * 1.2 * jnp.maximum(largest, 1.0) + RIDGE)  # a logistic loss bends by 1/4 at most

    def step(i: Array, carry: tuple) -> tuple:
        beta, bias, ahead, bias_ahead = carry
        slope = -w * problems.y * jax.nn.sigmoid(-problems.y * (scores(ahead) + bias_ahead))
        new = ahead - length * (back(slope) + RIDGE * ahead)
        bias_new = bias_ahead - length * jnp.sum(slope, axis=1, keepdims=True)
        momentum = i / (i + 3.0)
        return new, bias_new, new + momentum * (new - beta), bias_new + momentum * (bias_new - bias)

    zero, none = jnp.zeros_like(mean), jnp.zeros((len(w), 1))
    beta, bias, _, _ = jax.lax.fori_loop(0, GRADIENT_STEPS, step, (zero, none, zero, none))
    return scores(beta) + bias, beta * unit


def accuracy(scores: Array, problems: Problems) -> Array:
    """Scores [..., p, n] -> [..., p] the share of the test weight whose answer has their sign; 0 says no."""
    return jnp.sum(problems.test * ((scores > 0) == (problems.y > 0)), axis=-1)
