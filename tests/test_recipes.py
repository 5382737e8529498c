"""The recipes of publications: each of them takes a step, in its own widths, and begins a run on rows of one's own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import Crosscoder, Transcoder, train
from sae.cli import main as cli
from sae.experiment import validate
from sae.study.definition_files import load_file

FOLDER = Path(__file__).parents[1] / "experiments" / "published"
RECIPES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_step_in_its_own_widths(path):
    """Nothing is computed: JAX traces the step, whose state keeps its shapes."""
    one = validate(load_file(path))
    parts = (48, 64) if isinstance(one.task, Transcoder) else (64, 64) if isinstance(one.task, Crosscoder) else (64,)
    x = jax.ShapeDtypeStruct((sum(parts), one.batch_size), jnp.float32)
    start = jax.eval_shape(lambda x: train.init(one, x, parts), x)
    after, _ = jax.eval_shape(lambda state, x: train.step(one, state, jnp.int32(0), x), start, x)
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert jax.tree.structure(after) == jax.tree.structure(start) and shapes(after) == shapes(start)
    assert max(one.penalty.warmup_steps, getattr(one.optimizer, "warmup_steps", 0)) <= one.n_steps


def test_a_recipe_runs_on_rows_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("layer8.npy", np.random.default_rng(0).normal(size=(600, 16)).astype("float32"))
    small = "--d-sae 64 --n-steps 20 --batch-size 64 --optimizer.decay-steps 4 --penalty.warmup-steps 5 --wandb off"
    recipe = str(FOLDER / "anthropic_april_2024.py")
    assert cli.main(["run", recipe, "--data.path", "layer8.npy", "--out", "kept", *small.split()]) == 0
    assert (tmp_path / "kept" / "members.parquet").exists()
