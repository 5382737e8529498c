"""Language models: loading them, the names of places in them, running them up to a place and on from it.

A *hook* is a place in the model where activations are read or replaced. Names are the same for all families:

    resid-pre.L    what enters block L
    resid-post.L   what leaves block L
    attn-out.L     what attention adds to the residual stream in block L
    mlp-in.L       what enters the MLP of block L, normalized
    mlp-out.L      what the MLP adds to the residual stream in block L

Any module path of the model ("model.layers.3.mlp.act_fn") is a hook too: the output of that module.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.files import expanded, sha256
from sae.core.text import nearest
from sae.core.types import UserError
from sae.data.harvested import HOOK
from sae.lm.extra import library

PLACES = ("resid-pre", "resid-post", "attn-out", "mlp-in", "mlp-out")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION, MLP = ("self_attn", "attn", "attention"), ("mlp",)
BLOCKS, NORMS = ("layers", "h", "blocks"), ("norm", "ln_f", "final_layer_norm", "final_layernorm")
WEIGHTS = (".safetensors", ".bin")
Tensor = Any  # torch.Tensor, which is not imported here


@dataclasses.dataclass(frozen=True)
class Hook:
    """A place in the model: the input or the output of a module."""

    name: str
    module: str
    layer: int | None  # the block that holds it; None outside of the blocks
    entering: bool  # the module's input, rather than its output


class ReachedError(Exception):
    """All hooks have been read: the rest of the forward is not needed."""


class LanguageModel:
    """A causal language model and its tokenizer. `model` is of transformers and `tokenizer` too."""

    def __init__(self, model: Any, tokenizer: Any, identity: str) -> None:
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        self.modules = dict(model.named_modules())
        self.blocks_path, self.blocks = _blocks(model, self.modules)
        self.n_layers = len(self.blocks)
        self.d_model = int(model.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> Any:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def hook(self, name: str, layer: int | None = None) -> Hook:
        """The hook of a name, "resid-post.9"; with a layer, of "resid-post" or of a module's path inside the block.

        Raises UserError with close names.
        """
        if layer is not None:
            path = f"{self.blocks_path}.{layer}.{name}"
            name = f"{name}.{layer}" if name in PLACES else path if path in self.modules else name
        place, _, number = name.rpartition(".")
        if place in PLACES and re.fullmatch(r"[0-9]{1,6}", number):
            return self._place(name, place, int(number))
        if name not in self.modules or not name:
            raise UserError(f"hook: got {name!r}; {self._other(name)}")
        if not HOOK.fullmatch(name):
            raise UserError(f"hook: got {name!r}, allowed: letters, digits, '_', '-' and '.' in its name")
        inside = re.match(rf"{re.escape(self.blocks_path)}\.(\d+)(\.|$)", name)
        return Hook(name, name, int(inside[1]) if inside else None, entering=False)

    def _place(self, name: str, place: str, layer: int) -> Hook:
        if layer >= self.n_layers:
            raise UserError(f"hook: got {name!r}, allowed: layers 0 to {self.n_layers - 1}")
        if place.startswith("resid"):
            return Hook(name, f"{self.blocks_path}.{layer}", layer, entering=place == "resid-pre")
        block = self.blocks[layer]
        inner = next((one for one in (ATTENTION if place == "attn-out" else MLP) if hasattr(block, one)), None)
        if inner is not None and place != "mlp-in" and hasattr(block, "post_feedforward_layernorm"):
            # Gemma 2 and later normalize what a layer gives before they add it
            inner = "post_attention_layernorm" if place == "attn-out" else "post_feedforward_layernorm"
        if inner is None:
            parts = ", ".join(name for name, _ in block.named_children())
            raise UserError(
                f"hook: got {name!r}, but {type(block).__name__} has no such part; allowed: a module path, as "
                f"{self.blocks_path}.{layer}.X with X one of {parts}"
            )
        return Hook(name, f"{self.blocks_path}.{layer}.{inner}", layer, entering=place == "mlp-in")

    def _other(self, name: str) -> str:
        """The end of an error about a hook that is not there."""
        names = [f"{place}.{layer}" for layer in range(self.n_layers) for place in PLACES] + list(self.modules)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        places = ", ".join(f"{place}.L" for place in PLACES)
        among = f"{places} with L from 0 to {self.n_layers - 1}, or a module path as {self.blocks_path}.0.mlp"
        return f"close names: {', '.join(close)}" if close else f"allowed: {among}"

    def activations(self, ids: np.ndarray | Tensor, hooks: Sequence[str | Hook]) -> dict[str, Tensor]:
        """{hook: [b, t, d]} for tokens [b, t], on the model's device. The forward stops after the last hook.

        Padding (-1) stands at the end of a context only, where a causal model's other positions do not see it.
        """
        found: dict[str, Tensor] = {}
        wanted = [self.hook(one) if isinstance(one, str) else one for one in hooks]

        def keep(name: str, value: Any) -> None:
            found.setdefault(name, value if _is_tensor(value) else _first(value, name))
            if len(found) == len(wanted):
                raise ReachedError

        with contextlib.ExitStack() as stack, contextlib.suppress(ReachedError):
            for hook in wanted:
                self._watch(stack, hook, functools.partial(keep, hook.name))
            self._forward(ids)
        if missing := [hook.name for hook in wanted if hook.name not in found]:
            raise UserError(f"hook: got {missing[0]!r}, which the model's forward does not pass")
        b, t = ids.shape
        for name, value in found.items():
            if value.ndim != 3 or value.shape[:2] != (b, t):
                shape = list(value.shape)
                raise UserError(f"hook: got {name!r}, which gives {shape}, allowed: [batch {b}, context {t}, width]")
        return found

    def logits(self, ids: np.ndarray | Tensor) -> Tensor:
        """[b, t, n_tokens] of the whole model."""
        return self._forward(ids)

    def upper(
        self, ids: np.ndarray | Tensor, below: Tensor, hook: str | Hook, substitute: Tensor | None = None
    ) -> Tensor:
        """Logits [b, t, n_tokens] from the block that holds the hook on, without running the blocks below.

        `below` [b, t, d_model] is what enters that block, resid-pre of its layer. `substitute` [b, t, d] stands in
        place of the hook's value; None leaves it. Raises UserError for a hook outside of the blocks.
        """
        one = self.hook(hook) if isinstance(hook, str) else hook
        if one.layer is None:
            raise UserError(f"hook: got {one.name!r}, allowed: one in a block, such as resid-post.0")
        with contextlib.ExitStack() as stack:
            for block in self.blocks[: one.layer]:
                stack.enter_context(self._skipped(block))
            block = self.blocks[one.layer]
            whole = one.module == f"{self.blocks_path}.{one.layer}"
            if substitute is not None and whole and not one.entering:  # the block's own output is not asked for
                stack.enter_context(self._skipped(block))
                below = substitute
            elif substitute is not None and whole:
                below = substitute
            elif substitute is not None:
                self._replace(stack, self.modules[one.module], one.entering, substitute)
            self._replace(stack, block, True, below)
            return self._forward(ids)

    def unembedding(self) -> np.ndarray | None:
        """W [n_tokens, d_model] float32 with the final norm folded in; None where no head or norm is found.

        logits = W r, apart from a constant for each token, where r is the residual stream after the last block divided
        by the scale of the final norm.
        """
        torch = library("torch")
        head, base = self.model.get_output_embeddings(), self.modules.get(self.blocks_path.rpartition(".")[0])
        norm = next((getattr(base, name) for name in NORMS if hasattr(base, name)), None)
        weight = getattr(head, "weight", None)
        if norm is None or weight is None or weight.shape[1] != self.d_model:
            return None
        W = weight.detach().float().cpu().numpy()
        if isinstance(norm, torch.nn.LayerNorm):
            W = W * norm.weight.detach().float().cpu().numpy()
            return W - W.mean(axis=1, keepdims=True)  # it takes the mean off
        with torch.no_grad():  # ones have a root mean square of 1, so that what comes out is what it multiplies by
            return W * norm(torch.ones(1, 1, self.d_model, device=self.device)).float().cpu().numpy()[0, 0]

    def _forward(self, ids: np.ndarray | Tensor) -> Tensor:
        torch = library("torch")
        tokens: Tensor = ids if _is_tensor(ids) else torch.as_tensor(np.asarray(ids))
        with torch.no_grad():
            return self.model(tokens.long().clamp(min=0).to(self.device), use_cache=False).logits

    def _watch(self, stack: contextlib.ExitStack, hook: Hook, keep: Callable[[Any], None]) -> None:
        """Give the hook's value to a function in the next forward."""
        module = self.modules[hook.module]
        if hook.entering:
            handle = module.register_forward_pre_hook(
                lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(lambda _, args, out: keep(out))
        stack.callback(handle.remove)

    def _replace(self, stack: contextlib.ExitStack, module: Any, entering: bool, value: Tensor) -> None:
        """Put a value in place of the input or the output of a module in the next forward."""

        def before(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

        def after(_: Any, args: tuple, out: Any) -> Any:
            return value if _is_tensor(out) else type(out)((value, *out[1:]))

        if entering:
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after)
        stack.callback(handle.remove)

    @contextlib.contextmanager
    def _skipped(self, block: Any) -> Generator[None]:
        """A block that gives what enters it. It stays in its place, as models read other attributes of their blocks."""
        shape = self._gives_tuples

        def identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if shape else hidden_states

        block.forward = identity
        try:
            yield
        finally:
            del block.forward

    @functools.cached_property
    def _gives_tuples(self) -> bool:
        """Whether a block's output is a tuple, whose first is the residual stream."""
        found: list[Any] = []
        with contextlib.ExitStack() as stack, contextlib.suppress(ReachedError):

            def look(value: Any) -> None:
                found.append(value)
                raise ReachedError

            self._watch(stack, Hook("", f"{self.blocks_path}.0", 0, False), look)
            self._forward(np.zeros((1, 1), np.int64))
        return not _is_tensor(found[0])


def load(name: str | Path, dtype: str = "float32") -> LanguageModel:
    """A causal language model: a folder, a .gguf file, or the name of a model on the Hugging Face hub.

    Weights are read from safetensors, from GGUF, or by torch without unpickling code; code that a repository brings is
    never run. Raises UserError.
    """
    torch, transformers = library("torch"), library("transformers")
    if dtype not in DTYPES:
        raise UserError(f"model-dtype: got {dtype!r}, {nearest(dtype, DTYPES)}")
    place, how, identity = _located(str(name))
    with _silent(transformers):
        try:
            if not identity:  # the commit of a model on the hub, so that weights and tokenizer are of one
                identity = Path(transformers.utils.cached_file(place, "config.json")).parent.name
                how |= {"revision": identity}
            how |= {"trust_remote_code": False}
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **how)
            model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype), **how)
        except UserError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError, KeyError and others
            raise UserError(f"{name}: no causal language model could be loaded from it: {_brief(error)}") from None
    model.eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, identity)


def _located(name: str) -> tuple[str, dict[str, Any], str]:
    """What transformers is to open, how, and what tells its weights from others ("" for a model of the hub)."""
    path = expanded(name)
    if path.is_dir():
        files = sorted(path.iterdir())
        ggufs = [file for file in files if file.suffix == ".gguf"]
        weights = [file for file in files if file.suffix in WEIGHTS]
        if not (path / "config.json").exists() and len(ggufs) == 1:
            path = ggufs[0]
        elif not (path / "config.json").exists():
            what = f"{len(ggufs)} .gguf files; name one of them" if ggufs else "no config.json and no .gguf file"
            raise UserError(f"{name}: a folder with {what}; allowed: a model of transformers, or a .gguf file")
        else:
            digests = [sha256(file) for file in weights]
            one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
            return str(path), {"local_files_only": True}, f"sha256:{one}"
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"{name}: got a {path.suffix or 'nameless'} file, allowed: a folder, a .gguf file or a name on the hub"
            )
        library("gguf")
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}, f"sha256:{sha256(path)}"
    if path.suffix == ".gguf" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        folder = path.parent
        names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
        raise UserError(f"{name}: no such file or folder; in {folder}, {nearest(path.name, names[:20])}")
    return name, {}, ""


def _blocks(model: Any, modules: dict[str, Any]) -> tuple[str, Any]:
    """The path of the list of blocks and the list: the one named so that is nearest to the root. Raises UserError."""
    lists = [path for path, module in modules.items() if type(module).__name__ == "ModuleList"]
    known = [path for path in lists if path.rpartition(".")[2] in BLOCKS] or lists
    if not known:
        raise UserError(f"{type(model).__name__} has no list of blocks, allowed: a decoder made of blocks")
    path = min(known, key=lambda one: one.count("."))
    return path, modules[path]


@contextlib.contextmanager
def _silent(transformers: Any) -> Generator[None]:
    """Without transformers' bars and warnings: they are for people who write models."""
    logging, gguf = transformers.utils.logging, library("transformers.modeling_gguf_pytorch_utils")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bar, gguf.tqdm = gguf.tqdm, lambda tensors, **_: tensors  # a bar of its own, which no setting turns off
    try:
        yield
    finally:
        gguf.tqdm = bar
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def _first(value: Any, name: str) -> Tensor:
    """The tensor that a module's output begins with. Raises UserError."""
    if isinstance(value, tuple | list) and value and _is_tensor(value[0]):
        return value[0]
    raise UserError(f"hook: got {name!r}, whose module gives {type(value).__name__}, allowed: one that gives a tensor")


def _brief(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
