import io
import os

# The tests compile many small programs. What one process compiles, the others and the next run of the suite read: a
# process that starts reads some eighty programs, and compiling those anew takes it longer than importing JAX.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("WANDB_MODE", "offline")  # tests never upload, whatever the user has configured
os.environ.setdefault("WANDB_INIT_TIMEOUT", "60")  # seconds; on a busy machine a start takes many, and so does an end

# pushing to the hub is tested by its older way, which a server on loopback can speak; read when its client is imported
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import pytest
from rich.console import Console

from sae import Adam, Digits, ElasticNet, Experiment


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """Two seconds of training on digits. Tests vary it, mostly in leaves, so that they share compiled programs."""
    return Experiment(
        name="tiny",
        data=Digits(),
        d_sae=48,
        penalty=ElasticNet(l1=0.1),
        optimizer=Adam(lr=3e-3, warmup_steps=5, decay_steps=20),
        dead_after=2_000,
        batch_size=64,
        n_steps=60,
    )


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)
