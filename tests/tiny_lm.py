"""Tiny language models with random weights and a real tokenizer, made on the spot for tests."""

import functools
import json
from pathlib import Path

FAMILIES = ("llama", "gpt2", "gpt-neox", "gemma", "gemma2", "qwen2", "qwen3")
TEXT = 20 * [
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x + 1\n",
    "Été à la mer; 12,345 Vögel.",
]


def tokenizer(bos: bool = False):
    """A byte-level BPE of some 300 tokens, as GPT-2 and Llama 3 have. With `bos` every text begins with <s>."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<s>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(TEXT, trainer)
    if bos:
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"eos_token": "<|end|>"} | ({"bos_token": "<s>"} if bos else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)


@functools.cache
def model(family: str, layers: int = 3, width: int = 16):
    """A model of a family with random weights that are large enough to matter."""
    import torch
    import transformers as t

    common = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    grouped = size | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128}
    config = {
        "llama": lambda: t.LlamaConfig(**common, **grouped),
        "gpt2": lambda: t.GPT2Config(**common, n_embd=width, n_layer=layers, n_head=2, n_positions=128),
        "gpt-neox": lambda: t.GPTNeoXConfig(**common, **size, max_position_embeddings=128),
        "gemma": lambda: t.GemmaConfig(**common, **grouped),
        "gemma2": lambda: t.Gemma2Config(**common, **grouped, sliding_window=4),
        "qwen2": lambda: t.Qwen2Config(**common, **grouped),
        "qwen3": lambda: t.Qwen3Config(**common, **grouped),
    }[family]()
    torch.set_num_threads(1)  # of tiny products, where threads cost more than they bring
    torch.manual_seed(0)
    made = t.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.5 if parameter.ndim == 1 else 0))
    return made


def folder(path: Path, family: str = "llama", bos: bool = False) -> str:
    """A folder as transformers saves one."""
    import transformers as t

    t.utils.logging.disable_progress_bar()
    model(family).save_pretrained(path)
    tokenizer(bos).save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["vocab_size"] == 300
    return str(path)
