"""What a language model loses when a reconstruction stands in place of its activations.

    Sweep(..., measures=[LossRecovered()])

The lower part of the model runs once for all members, and members reconstruct together on the device. The upper part
then runs once for each member, and for the intact model and the ablations.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.core.model import Sae
from sae.core.types import Array, UserError
from sae.data.activations import Activations
from sae.data.harvested import Harvested
from sae.data.rows import Rows
from sae.lm import models
from sae.lm.extra import library
from sae.lm.models import LanguageModel
from sae.store.results import Results

CONTEXTS_AT_ONCE = 8
DRAWS = 2_000  # of the bootstrap over documents
BESIDE = ("intact", "zero", "mean")  # what is computed beside members, in the order of `Losses`


@dataclasses.dataclass(frozen=True)
class Losses:
    """Sums over the tokens of each document: the first axis is `BESIDE`, and then the members."""

    cross_entropy: np.ndarray  # [3 + members, documents] nats
    kl: np.ndarray  # [3 + members, documents] nats, of the intact model's next token from this one's
    predicted: np.ndarray  # [documents] tokens in the cross-entropy
    replaced: np.ndarray  # [documents] tokens in the KL, at which activations were replaced

    def recovered(self, member: int, weights: np.ndarray | None = None) -> Any:
        """Loss recovered of a member, (CE_zero - CE) / (CE_zero - CE_intact), or of the mean ablation for -1.

        `weights` [..., documents] counts each document so often; by default once.
        """
        weights = np.ones(len(self.predicted)) if weights is None else weights
        intact, zero, own = (weights @ self.cross_entropy[i] for i in (0, 1, 3 + member))
        return (zero - own) / (zero - intact)

    def interval(self, member: int) -> tuple[float, float]:
        """The bootstrap 95 % percentile interval of `recovered` over documents; NaN for fewer than two documents."""
        n = len(self.predicted)
        if n < 2:
            return np.nan, np.nan
        picks = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        low, high = np.quantile(self.recovered(member, picks), [0.025, 0.975])
        return float(low), float(high)

    def mean(self, of_documents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Sums [..., documents] -> means over tokens [...]."""
        return of_documents.sum(-1) / tokens.sum()


def losses(
    reconstruct: Callable[[np.ndarray], np.ndarray],
    language_model: LanguageModel,
    folder: Harvested,
    hooks: tuple[str, str],
    contexts: np.ndarray,
) -> Losses:
    """The losses in some held-out contexts of a harvest, with activations of its model that are computed anew.

    `reconstruct` maps raw rows [n, d_in] at the first hook to what each member puts in their place at the second,
    [members, n, d_out]; for an autoencoder both are one hook. Only positions that the harvest kept are replaced:
    elsewhere the intact activation stays, as at the first position. The zero ablation alone replaces all positions, as
    SAELens' does. The mean ablation puts the harvest's mean training row at the positions that members replace.
    """
    torch, part = library("torch"), folder.part("held-out")
    read, replaced_at = (language_model.hook(name) for name in hooks)
    below = f"resid-pre.{replaced_at.layer}"
    mean = torch.as_tensor(folder.mean(hooks[1])).to(language_model.device)
    sums: dict[str, list[np.ndarray]] = {"cross_entropy": [], "kl": []}
    owners, predicts = [], []
    for start in range(0, len(contexts), CONTEXTS_AT_ONCE):
        some = contexts[start : start + CONTEXTS_AT_ONCE]
        ids, documents, kept = part.ids[some], part.documents[some], part.row[some] >= 0
        found = language_model.activations(ids, list(dict.fromkeys((below, *hooks))))
        rows = found[read.name].float().cpu().numpy()
        made = reconstruct(rows.reshape(-1, rows.shape[-1]))
        intact = found[replaced_at.name]
        where = torch.as_tensor(kept).to(intact.device)[..., None]
        follows = np.zeros_like(kept)  # positions whose next token is counted: of the same document and context
        follows[:, :-1] = kept[:, :-1] & (documents[:, 1:] == documents[:, :-1])
        after = torch.as_tensor(np.where(follows, np.roll(ids, -1, axis=1), 0)).long().to(intact.device)
        stand_ins = [None, torch.zeros_like(intact), torch.where(where, mean.to(intact.dtype), intact)]
        stand_ins += [_put(torch, one.reshape(*intact.shape), intact, where) for one in made]
        logs = None
        batch: dict[str, list[np.ndarray]] = {"cross_entropy": [], "kl": []}
        for stand_in in stand_ins:
            logits = language_model.upper(ids, found[below], replaced_at, stand_in)[where[..., 0]]
            own = torch.log_softmax(logits.float(), dim=-1)
            logs = own if logs is None else logs  # the intact model's
            taken = own.gather(1, after[where[..., 0]][:, None])[:, 0]
            batch["cross_entropy"].append(-taken.double().cpu().numpy())
            batch["kl"].append((logs.exp() * (logs - own)).sum(-1).double().cpu().numpy())
        for name, values in batch.items():
            sums[name].append(np.stack(values))
        owners.append(documents[kept])
        predicts.append(follows[kept])
    owner, place = np.unique(np.concatenate(owners), return_inverse=True)
    counted = np.concatenate(predicts)
    of_documents = lambda values: np.bincount(place, values, len(owner))
    entropy, kl = (np.concatenate(sums[name], axis=1) for name in ("cross_entropy", "kl"))
    return Losses(
        np.stack([of_documents(row * counted) for row in entropy]),
        np.stack([of_documents(row) for row in kl]),
        of_documents(counted),
        of_documents(np.ones(len(place))),
    )


def _put(torch: Any, values: np.ndarray, intact: Any, where: Any) -> Any:
    """The intact activations with these values in their place where something is replaced."""
    return torch.where(where, torch.as_tensor(np.array(values)).to(intact.device, intact.dtype), intact)


def reconstruct(sae: Sae, x: Array) -> Array:
    """Normalized examples [n, d_in] -> what stands in their place [n, d_out], normalized."""
    return members.over_examples(sae, x)


@dataclasses.dataclass
class Place:
    """Where members read and write: the model, the harvest, the hooks, and the members of all cohorts that do."""

    model: LanguageModel
    folder: Harvested
    hooks: tuple[str, str]
    numbers: list[int] = dataclasses.field(default_factory=list)
    cohorts: list[Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=list)

    def reconstruct(self, raw: np.ndarray) -> np.ndarray:
        """Raw rows [n, d_in] -> [members, n, d_out], in the order of `numbers`."""
        return np.concatenate([put(raw) for put in self.cohorts])


@dataclasses.dataclass(frozen=True)
class LossRecovered:
    """How much of a language model's next-token loss members keep, on held-out text.

    Loss recovered is (CE_zero - CE) / (CE_zero - CE_intact): 1 for a perfect reconstruction, 0 for one that is as bad
    as zeros. CE is the cross-entropy of the next token, in nats, at the positions where activations are replaced, those
    that the harvest kept; elsewhere the intact activation stays and no loss is counted. A position whose next token is
    in another document or context is not counted either. Zero ablation replaces the activations of all positions, as in
    SAELens; mean ablation puts the mean training row where members put a reconstruction.

    A transcoder's prediction stands in place of its target. Needs the extra `lm` and the model.
    """

    model: str | None = None
    """The model, as `sae harvest` takes it; None for the one that the harvest's card names."""
    n_tokens: int = 4_096
    """Held-out positions to replace, rounded up to whole contexts, chosen at random; all where there are fewer."""
    seed: int = 0
    """Seed of the choice of contexts."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/loss_recovered": "share of the model's loss that reconstructions keep: (CE_zero - CE) / (CE_zero - "
        "CE_intact), CE the cross-entropy of the next token",
        "analysis/loss_recovered_low": "lower end of its bootstrap 95 % interval over documents",
        "analysis/loss_recovered_high": "upper end of its bootstrap 95 % interval over documents",
        "analysis/loss_recovered_mean": "loss recovered by the mean training row in place of every activation",
        "analysis/ce": "cross-entropy of the next token with reconstructions in place of activations, nats",
        "analysis/ce_intact": "cross-entropy of the next token of the intact model, nats",
        "analysis/ce_zero": "cross-entropy of the next token with zeros in place of activations, nats",
        "analysis/ce_mean": "cross-entropy of the next token with the mean row in place of activations, nats",
        "analysis/kl": "KL divergence of the next token with reconstructions from that of the intact model, nats",
        "analysis/kl_zero": "KL divergence of the next token with zeros from that of the intact model, nats",
        "analysis/kl_mean": "KL divergence of the next token with the mean row from that of the intact model, nats",
        "analysis/loss_tokens": "tokens whose cross-entropy was counted",
        "analysis/loss_documents": "held-out documents that they are of",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member.

        Raises UserError for data that are not `Activations`, for a crosscoder, without the extra `lm`, and where the
        model cannot be loaded or is not the harvest's.
        """
        known: dict[str, LanguageModel] = {}
        places: dict[tuple, Place] = {}

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Any]:
            folder, hooks = _place(saes, data)
            name = self.model or str(folder.card.get("model"))
            if name not in known:
                known[name] = _loaded(name, folder, asked=self.model is not None)
            made = data.rows.normalization
            assert made is not None
            seen, given = made.part(0, saes.d_in), made.part(len(made.shift) - saes.d_out, len(made.shift))
            put = lambda raw: np.asarray(given.undo(members.each(reconstruct, saes, jnp.asarray(seen.apply(raw)))))
            place = places.setdefault((folder.path, hooks), Place(known[name], folder, hooks))
            place.numbers += [int(member) for member in rows["member"]]
            place.cohorts.append(put)
            return {}

        by_cohort(results, ask, of_inputs=True)  # the model runs after it, once for the members of all cohorts
        tables = []
        for place in places.values():
            found = losses(place.reconstruct, place.model, place.folder, place.hooks, self._contexts(place.folder))
            tables.append(pd.DataFrame(self._columns(found), index=pd.Index(place.numbers, name="member")))
        return pd.concat(tables)

    def _contexts(self, folder: Harvested) -> np.ndarray:
        """The held-out contexts to replace activations in, in text order."""
        kept = np.sum(folder.part("held-out").row >= 0, axis=1)
        order = np.random.default_rng(self.seed).permutation(len(kept))
        enough = int(np.searchsorted(np.cumsum(kept[order]), self.n_tokens)) + 1
        return np.sort(order[:enough])

    def _columns(self, found: Losses) -> dict[str, np.ndarray]:
        entropy, kl = found.mean(found.cross_entropy, found.predicted), found.mean(found.kl, found.replaced)
        n = len(entropy) - len(BESIDE)
        low, high = np.array([found.interval(i) for i in range(n)]).T
        columns = {
            "loss_recovered": np.array([found.recovered(i) for i in range(n)]),
            "loss_recovered_low": low,
            "loss_recovered_high": high,
            "loss_recovered_mean": found.recovered(-1),
            "ce": entropy[len(BESIDE) :],
            "kl": kl[len(BESIDE) :],
            "loss_tokens": found.predicted.sum(),
            "loss_documents": np.sum(found.predicted > 0),
        }
        columns |= {f"ce_{name}": entropy[i] for i, name in enumerate(BESIDE)}
        columns |= {f"kl_{name}": kl[i] for i, name in enumerate(BESIDE) if name != "intact"}
        return {f"analysis/{name}": np.broadcast_to(np.asarray(value, float), n) for name, value in columns.items()}


def _place(saes: Sae, data: Data) -> tuple[Harvested, tuple[str, str]]:
    """The harvest, the hook that members read and the one at which they write. Raises UserError."""
    if not isinstance(data.source, Activations) or not isinstance(data.rows, Rows):
        raise UserError(
            f"LossRecovered: got data of {type(data.source).__name__}, allowed: Activations, from `sae harvest`"
        )
    folder, hooks = data.source.harvested(), data.source.hooks()
    if len(saes.parts) > 1:
        raise UserError(f"LossRecovered: got a crosscoder of {len(saes.parts)} hooks, allowed: one hook to replace")
    return folder, (hooks[0], hooks[-1])


def _loaded(name: str, folder: Harvested, asked: bool) -> LanguageModel:
    """The model, on a GPU where torch has one. Raises UserError where it is not the one that was harvested."""
    try:
        found = models.load(name)
    except UserError as error:
        hint = "" if asked else "; the harvest's card names it; LossRecovered(model=...) says where it is now"
        raise UserError(f"{error}{hint}") from None
    was = folder.card.get("revision")
    if was is not None and was != found.identity:
        raise UserError(f"LossRecovered: {name} is {found.identity}, allowed: {was}, which {folder.path} was made of")
    if library("torch").cuda.is_available():
        found.model.to("cuda")
    return found
