"""A harvest of a tiny language model with random weights, made from arrays; needs torch and transformers."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import tiny_lm

from sae import Relu, Sae
from sae.data import harvested
from sae.lm import models


def write(path, family="llama", hooks=("resid-post.1",), n_contexts=12, context=16, documents_in_a_context=1, seed=0):
    """A model's folder and a harvest of random tokens: position 0 is <s> (token 1), and is left out.

    Gives (the model, the harvest). A context holds one document, or several that follow each other.
    """
    rng, name = np.random.default_rng(seed), tiny_lm.folder(path / "model", family)
    ids = rng.integers(2, 300, (2, n_contexts, context)).astype(np.int32)
    ids[:, :, 0] = 1
    return of_tokens(path, name, ids, hooks, documents_in_a_context)


def of_tokens(path, name, tokens, hooks, documents_in_a_context=1):
    """A model by its name, and the harvest of training and held-out tokens [2, n_contexts, context]."""
    language_model, (n_contexts, context) = models.load(name), tokens.shape[1:]
    contexts, rows, table = {}, {}, []
    for split, ids in zip(harvested.SPLITS, tokens, strict=True):
        parts = np.arange(context) * documents_in_a_context // context
        owners = np.arange(n_contexts)[:, None] * documents_in_a_context + parts + len(table)
        owners[:, 0] = -1
        table += [
            {"name": str(i), "corpus": "random", "kind": "txt", "split": split, "n_tokens": context}
            for i in range(n_contexts * documents_in_a_context)
        ]
        contexts[split] = ids, owners.astype(np.int32)
        found = language_model.activations(ids, hooks)
        at = harvested.kept(contexts[split][1], 1)
        rows[split] = {hook: found[hook].numpy()[at].astype(np.float16) for hook in hooks}
    given = {"documents": pd.DataFrame(table), "pieces": [b"x"] * (1 + int(tokens.max()))}
    card = {"model": str(name), "revision": language_model.identity}
    return language_model, harvested.write(path / "acts", contexts=contexts, rows=rows, **given, **card)


def real(name, path, hook="resid-post.9", n_contexts=4, context=64):
    """A real model and a harvest of a text that Python prints; a context begins with token 0, which ends texts."""
    import this

    text = "".join(this.d.get(letter, letter) for letter in this.s)
    language_model = models.load(name)
    found = language_model.tokenizer(text * 3, add_special_tokens=False)["input_ids"]
    ids = np.array(found[: 2 * n_contexts * (context - 1)], np.int32).reshape(2, n_contexts, context - 1)
    assert (ids != 0).all()
    return of_tokens(path, name, np.concatenate([0 * ids[:, :, :1], ids], axis=2), (hook,))


def principal(folder, rank=64):
    """PCA of the training rows as an autoencoder with two ReLU latents for each component."""
    rows = np.float32(folder.part("train").rows(folder.hooks[0])[:])
    mean = rows.mean(0)
    components = np.linalg.svd(rows - mean, full_matrices=False)[2][:rank]
    W = np.concatenate([components, -components])
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W, np.zeros(len(W)), W, mean)), Relu())
