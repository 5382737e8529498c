"""What does SAELens itself reach in the small tier of SynthSAEBench? Reference values for `synth_bench_cpu.py`.

    python benchmarks/synth_bench_reference.py                       # 5 methods x 3 seeds; an hour of one core
    python benchmarks/synth_bench_reference.py --steps 200 --seeds 0  # a trial

It needs SAELens 6.54 beside the project (`pip install torch==2.13.0 sae-lens==6.54.12`). All autoencoders train on
the very batches of the sweep, with SAELens' own trainers, which clip gradients to a norm of 1. SAELens' evaluator gives
the numbers, on examples of its own generator, whose world it reads from the sweep's files: a row per autoencoder in
`benchmarks/synth_bench_reference.csv`.

SAELens has no controller of L0. `Controller` repeats the one of the paper's experiments, as `SaeLensTargetL0` does.
"""

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import torch  # ty: ignore[import-not-found]
from sae_lens.config import LoggingConfig, SAETrainerConfig  # ty: ignore[import-not-found]
from sae_lens.registry import get_sae_training_class  # ty: ignore[import-not-found]
from sae_lens.synthetic import SyntheticModel, eval_sae_on_synthetic_data  # ty: ignore[import-not-found]
from sae_lens.training.sae_trainer import SAETrainer  # ty: ignore[import-not-found]

from sae.data.source import Draw
from sweeps.papers import synth_bench as full
from sweeps.papers.synth_bench_cpu import L0, base

OUT = Path(__file__).with_suffix(".csv")
DATA: Any = base.data
ADAM: Any = base.optimizer
HELD_OUT = 200_000  # examples for the evaluator, as in the sweep


@dataclass
class Controller:
    """A factor on a penalty: m <- m (1 + rate · g · tanh(10 e)), e the relative error of a smoothed L0."""

    rate: float
    begin: int
    factor: float = 1.0
    mean: float | None = None
    change: float = 0.0

    def settle(self, l0: float, step: int) -> None:
        """One step; g is .01 while L0 approaches its target and 1 otherwise."""
        before = l0 if self.mean is None else self.mean
        self.mean = 0.99 * before + 0.01 * l0
        self.change = 0.95 * self.change + 0.05 * (self.mean - before)
        error = self.mean - L0
        if step >= self.begin:
            gain = self.rate * (0.01 if error * self.change < 0 else 1.0)
            self.factor = float(np.clip(self.factor * (1 + gain * np.tanh(10 * error / L0)), 0.01, 100.0))


def configs(steps: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each method: its architecture in SAELens, and what its config sets."""
    d_sae, k = base.d_sae, L0
    widths = [d_sae // 32, d_sae // 8, d_sae // 2, d_sae]
    return {
        "BatchTopK": ("batchtopk", {"k": k}),
        "Matryoshka": ("matryoshka_batchtopk", {"k": k, "matryoshka_widths": widths}),
        "matching pursuit": (
            "matching_pursuit",
            {"max_iterations": round(k), "residual_threshold": 0.0, "decoder_init_norm": 1.0},
        ),
        "L1": ("standard", {"l1_coefficient": 2.0, "l1_warm_up_steps": steps // 3}),
        "JumpReLU": (
            "jumprelu",
            {
                "l0_coefficient": 1.0,
                "l0_warm_up_steps": 0,
                "jumprelu_bandwidth": 1.0,
                "jumprelu_init_threshold": 1.0,
                "decoder_init_norm": 0.5,
                "normalize_activations": "expected_average_only_in",
            },
        ),
    }


CONTROLLED = {"L1": "l1", "JumpReLU": "l0"}  # the coefficient that the controller multiplies


class Training:
    """One autoencoder of SAELens, its trainer, and its controller where it has one."""

    def __init__(self, method: str, seed: int, steps: int, batches: "Batches") -> None:
        self.method, self.seed = method, seed
        architecture, changed = configs(steps)[method]
        torch.manual_seed(seed)
        make, config = get_sae_training_class(architecture)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = make(config(d_in=DATA.d_in, d_sae=base.d_sae, **changed))
        lr, size = float(ADAM.lr), base.batch_size
        self.trainer = SAETrainer(
            SAETrainerConfig(
                n_checkpoints=0,
                checkpoint_path=None,
                save_final_checkpoint=False,
                total_training_samples=steps * size,
                device="cpu",
                autocast=False,
                lr=lr,
                lr_end=lr,
                lr_scheduler_name="constant",
                lr_warm_up_steps=0,
                adam_beta1=0.9,
                adam_beta2=0.999,
                lr_decay_steps=0,
                n_restart_cycles=1,
                train_batch_size_samples=size,
                dead_feature_window=1000,
                feature_sampling_window=2000,
                logger=LoggingConfig(log_to_wandb=False),
                n_batches_for_norm_estimate=1000,
            ),
            sae,
            batches,
        )
        if sae.cfg.normalize_activations == "expected_average_only_in":
            self.trainer.activation_scaler.estimate_scaling_factor(DATA.d_in, batches, 100)
        begin = steps // 3 if method == "L1" else 0
        rate = min(1.0, 3e-4 * full.STEPS / steps)
        self.controller = Controller(rate, begin) if method in CONTROLLED else None
        self.coefficient = {"L1": 2.0, "JumpReLU": 1.0}.get(method, 0.0)

    def step(self, x: torch.Tensor, step: int) -> None:
        """One step of SAELens' trainer."""
        trainer = self.trainer
        if self.controller is not None:
            scheduler = trainer.coefficient_schedulers[CONTROLLED[self.method]]
            scheduler.final_value = self.coefficient * self.controller.factor
        trainer.maybe_reset_sparsity()
        output = trainer.step(x)
        trainer.n_training_steps += 1
        if self.controller is not None:
            self.controller.settle(float((output.feature_acts != 0).sum()) / len(x), step)

    def finished(self) -> Any:
        """The autoencoder, its scaling folded into it."""
        scaler = self.trainer.activation_scaler
        if scaler.scaling_factor is not None:
            self.trainer.sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
            scaler.scaling_factor = None
        return self.trainer.sae.eval()


class Batches:
    """The batches of the sweep, from step 0 on; again from there after `begin`."""

    def __init__(self) -> None:
        draw = Draw(base.data_seed, base.batch_size, 1)
        self._block = DATA.load().blocks(draw, lambda array: array, 0)(0)
        self._batch = jax.jit(lambda step: self._block.batches(step)[0].T)
        self.begin()

    def begin(self) -> None:
        """Step 0 is the next."""
        self._step = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> torch.Tensor:
        x = np.array(self._batch(self._step))
        self._step += 1
        return torch.from_numpy(x)


def trained(steps: int, seed: int) -> list[Training]:
    """The methods of one seed, trained side by side."""
    batches = Batches()
    trainings = [Training(method, seed, steps, batches) for method in configs(steps)]
    batches.begin()
    spent = dict.fromkeys(["sampling", *configs(steps)], 0.0)
    for step in range(steps):
        begun = time.perf_counter()
        x = next(batches)
        spent["sampling"] += time.perf_counter() - begun
        for training in trainings:
            begun = time.perf_counter()
            training.step(x, step)
            spent[training.method] += time.perf_counter() - begun
        if step % 500 == 499:
            rates = ", ".join(f"{name} {1e3 * s / (step + 1):.1f} ms" for name, s in spent.items())
            print(f"seed {seed}: step {step + 1} of {steps}: {rates} a step", flush=True)
    return trainings


def evaluated(sae: Any, model: Any) -> dict[str, float]:
    """What SAELens' evaluator says of an autoencoder."""
    generator = model.activation_generator
    found = eval_sae_on_synthetic_data(sae, model.feature_dict, generator, num_samples=HELD_OUT)
    numbers = found.classification
    return {
        "f1": numbers.f1_score,
        "mcc": found.mcc,
        "explained_variance": found.explained_variance,
        "uniqueness": found.uniqueness,
        "precision": numbers.precision,
        "recall": numbers.recall,
        "l0": found.sae_l0,
        "dead": found.dead_latents,
    }


def main() -> None:
    """Train, evaluate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=base.n_steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--save", type=Path, help="a folder for the autoencoders, which `sae evaluate` reads")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # at these sizes a second thread costs ten times what it saves
    with tempfile.TemporaryDirectory() as folder:
        DATA.world().save(folder)
        model = SyntheticModel.load_from_disk(folder)
    rows = []
    for seed in asked.seeds:
        for training in trained(asked.steps, seed):
            sae = training.finished()
            if asked.save is not None:
                sae.save_inference_model(asked.save / f"{training.method.replace(' ', '_')}_{seed}")
            torch.manual_seed(3)
            rows.append({"method": training.method, "seed": seed, "steps": asked.steps, **evaluated(sae, model)})
            pd.DataFrame(rows).round(5).to_csv(asked.out, index=False)
    table = pd.DataFrame(rows).drop(columns=["seed", "steps"]).groupby("method", sort=False)
    print(table.mean().round(4).to_string())
    print("standard deviations over seeds:\n" + table.std().round(4).to_string())


if __name__ == "__main__":
    main()
