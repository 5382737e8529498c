"""Is `SynthBench` the generator of SAELens? Worlds from one seed, and moments of the examples of both.

    python benchmarks/synth_bench.py                  # the small tier: 1,024 features, 200,000 examples of each
    python benchmarks/synth_bench.py --full           # 16,384 features, 20,000 examples of each from our files

It needs SAELens 6.54 beside the project (`pip install torch==2.13.0 sae-lens==6.54.12`). It prints how far the arrays
of the two worlds are apart, also after each tool has read the other's files, and a table of moments. A difference of
two counts is given in standard errors, z: of m independent ones the largest is about sqrt(2 log m).
"""

import argparse
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import torch  # ty: ignore[import-not-found]
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig  # ty: ignore[import-not-found]

from sae import SynthBench
from sae.data import worlds

BATCH = 1_000
PAIRS = 512  # the most frequent features, whose firings together are compared


class Moments:
    """Sums over examples: firings of features and of pairs of them, values, norms, and broken rules."""

    def __init__(self, parents: np.ndarray) -> None:
        n = len(parents)
        self.parents, self.n = parents, 0
        self.fired, self.values, self.squares = np.zeros(n), np.zeros(n), np.zeros(n)
        self.pairs, self.norms, self.orphans, self.both = np.zeros((PAIRS, PAIRS)), [], 0, 0

    def add(self, x: np.ndarray, values: np.ndarray) -> None:
        """Examples x [n, d_in] with the values [n, n_features] of their features."""
        active, child = values > 0, self.parents >= 0
        self.n += len(x)
        self.fired += active.sum(0)
        self.values += values.sum(0)
        self.squares += (values**2).sum(0)
        some = active[:, :PAIRS].astype(np.float32)
        self.pairs += some.T @ some
        self.norms.append(np.linalg.norm(x, axis=1))
        self.orphans += (active[:, child] & ~active[:, self.parents[child]]).sum()
        families = np.zeros((len(self.parents), len(x)), int)
        np.add.at(families, self.parents[child], active[:, child].T)
        self.both += (families > 1).sum()

    def magnitudes(self, chosen: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of the values above 0 of some features."""
        n = self.fired[chosen].sum()
        mean = self.values[chosen].sum() / n
        return mean, np.sqrt(self.squares[chosen].sum() / n - mean**2)


def furthest(a: Moments, b: Moments) -> tuple[float, float, int]:
    """The largest z of a difference in rates, and in how often two features fire together, and the number of pairs.

    Features and pairs of which both have less than 50 together are left out: their counts are not normal.
    """
    rates = _z(a.fired, b.fired)
    pairs = _z(a.pairs[np.triu_indices(PAIRS, 1)], b.pairs[np.triu_indices(PAIRS, 1)])
    return float(rates.max()), float(pairs.max()), len(pairs)


def _z(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    enough = a + b >= 50
    return np.abs(a - b)[enough] / np.sqrt((a + b)[enough])


def same_world(ours: worlds.World, ours_in_saelens: SyntheticModel) -> None:
    """Print how far our world is from that of SAELens from the same config and seed, and what SAELens read of ours."""
    begun = time.perf_counter()
    theirs = SyntheticModel(SyntheticModelConfig.from_dict(dict(ours.config)))
    print(f"SAELens' world, from the same config and seed: {time.perf_counter() - begun:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        theirs.save(folder)
        read = worlds.read(folder)
    for name in ("features", "bias", "factor", "residuals", "probabilities", "means", "deviations", "parents"):
        print(f"{name}: largest difference {np.abs(getattr(ours, name) - getattr(read, name)).max():.2g}")
    same = (ours.exclusive == read.exclusive).all() and (ours.scaling == read.scaling).all()
    print(f"exclusion and scaling are the same: {same}")
    generator, expected = ours_in_saelens.activation_generator, theirs.activation_generator
    for name in ("firing_probabilities", "mean_firing_magnitudes", "std_firing_magnitudes"):
        difference = (getattr(generator, name) - getattr(expected, name)).abs().max()
        print(f"our files in SAELens, {name}: largest difference {difference:.2g}")


def main() -> None:
    """Draw both worlds and examples of both, and print how they differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--examples", type=int)
    options = parser.parse_args()
    source = SynthBench() if options.full else SynthBench(d_in=96, n_features=1_024, n_roots=8)
    n = options.examples or (20_000 if options.full else 200_000)

    begun = time.perf_counter()
    ours = source.world()
    print(f"our world: {time.perf_counter() - begun:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        theirs = SyntheticModel.load_from_disk(folder)
    if not options.full:  # pushing 16,384 directions apart takes SAELens an hour of this processor
        same_world(ours, theirs)

    level = np.where((ours.parents < 0) & ~ours.scaling, -1, ours.levels)  # -1: in no tree
    labelled: Any = source.load().labelled
    draw = jax.jit(lambda key: labelled(key, BATCH))
    found = {"SAELens": Moments(ours.parents), "ours": Moments(ours.parents), "ours again": Moments(ours.parents)}
    torch.manual_seed(0)
    for i in range(n // BATCH):
        found["SAELens"].add(*(t.numpy() for t in theirs.sample_with_features(BATCH)))
        for j, name in enumerate(("ours", "ours again")):
            found[name].add(*map(np.asarray, draw(jax.random.fold_in(jax.random.key(j), i))))
    norms = {name: np.concatenate(moments.norms) for name, moments in found.items()}
    quarter = source.n_features // 4
    rows = {
        "L0": lambda m: f"{m.fired.sum() / m.n:.4f}",
        "L0 of the most frequent quarter": lambda m: f"{m.fired[:quarter].sum() / m.n:.4f}",
        "children without their parent": lambda m: m.orphans,
        "exclusive siblings together": lambda m: m.both,
    }
    for depth in (-1, *range(level.max() + 1)):
        chosen, where = level == depth, "no tree" if depth < 0 else f"level {depth}"
        rows[f"magnitudes, {where}: mean, sd"] = lambda m, chosen=chosen: "{:.4f}, {:.4f}".format(*m.magnitudes(chosen))
    print("\n| | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
    for name, read_off in rows.items():
        print(f"| {name} | " + " | ".join(str(read_off(moments)) for moments in found.values()) + " |")
    print("| norm of x: mean, sd | " + " | ".join(f"{v.mean():.4f}, {v.std():.4f}" for v in norms.values()) + " |")
    for name, other in (("SAELens", "ours"), ("ours again", "ours")):
        rates, pairs, n_pairs = furthest(found[name], found[other])
        print(f"{name} and {other}: largest z of {len(level)} rates {rates:.2f}, of {n_pairs} pairs {pairs:.2f}")
    V = ours.features
    largest = [
        np.max(np.abs(V[i : i + 512] @ V.T) - np.eye(len(V))[i : i + 512] * 2, axis=1) for i in range(0, len(V), 512)
    ]
    print(f"mean max |cos|: {np.concatenate(largest).mean():.4f}")


if __name__ == "__main__":
    sys.exit(main())
