"""The card of an autoencoder: a page in Markdown with its experiment, its metrics and how to load it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sae.core.metrics import metric
from sae.core.model import Sae
from sae.core.text import in_markdown
from sae.interop.plain import Plain
from sae.methods.activations import BatchTopK, SoftThreshold


def page(
    one: Plain,
    sae: Sae,
    format: str,
    loading: str,
    folder: str,
    name: str,
    experiment: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> str:
    """The text of README.md. The hub reads the lines between the rules at its top."""
    tags = ["sparse-autoencoder", format.replace("_", "-")]
    lines = ["---", *(["library_name: saelens"] if format == "saelens" else []), "tags:", *(f"- {t}" for t in tags)]
    lines += ["---", "", f"# {in_markdown(name or 'A sparse autoencoder')}", ""]
    what = "transcoder" if one.transcodes else "sparse autoencoder"
    width = f"{one.d_in:,} to {one.d_out:,}" if one.d_out != one.d_in else f"{one.d_in:,}"
    lines += [f"A {what} of width {width} with {one.d_sae:,} latents, trained with Sparsity Lab.", ""]
    lines += _notes(one, sae)
    lines += ["## Load it", "", "```python", loading.format(folder=folder, d_in=one.d_in), "```", ""]
    lines += ["Or with Sparsity Lab:", "", "```python", "import sae", ""]
    lines += [f'one = sae.interop.load("{folder}")', "latents, x_hat = one.encode(x), one(x)", "```", ""]
    if metrics:
        lines += ["## Held-out metrics", "", "| metric | value | meaning |", "|---|---|---|"]
        for key, value in metrics.items():
            known = metric(key.rpartition("/")[2])
            lines.append(f"| {in_markdown(key)} | {value:.6g} | {in_markdown(known.caption) if known else ''} |")
        lines.append("")
    if experiment:
        lines += ["## Experiment", "", "| field | value |", "|---|---|"]
        lines += [f"| {in_markdown(key)} | {in_markdown(_value(value))} |" for key, value in experiment.items()]
        lines.append("")
    return "\n".join(lines)


def _notes(one: Plain, sae: Sae) -> list[str]:
    """What its user has to know."""
    notes = ["It takes raw rows, as they come from their source, and gives raw reconstructions."]
    if sae.normalization is not None:
        does = "divides the latents by its scale" if one.kind == "matching_pursuit" else "keeps the latents"
        notes.append(f"The normalization of the training data is folded into the weights, which {does}.")
    if not one.unit_norm and one.norms.min() > 0:
        notes.append(f"Decoder rows have norms from {one.norms.min():.4g} to {one.norms.max():.4g}.")
    if isinstance(sae.activation, BatchTopK):
        notes.append("It was trained with BatchTopK and is saved as the JumpReLU that BatchTopK is outside training.")
    if isinstance(sae.activation, SoftThreshold):
        notes.append("Its soft threshold is part of the encoder bias.")
    return [*(f"- {note}" for note in notes), ""]


def _value(value: Any) -> str:
    """A value as a reader wants it: a path shows its last part alone, as the rest is of somebody's machine."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub(r"(?<![\w.])~?/[^\s\",]*/(?=[^/\s\",]+)", "…/", text)
