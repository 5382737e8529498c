"""What a token stands for, in bytes."""

import json
import re
from typing import Any

import numpy as np


def pieces(tokenizer: Any, n_tokens: int) -> tuple[list[bytes], np.ndarray]:
    """The bytes of tokens 0 .. n_tokens - 1, and which of them are special [n_tokens] bool.

    Exact for byte-level BPE (GPT-2 and Llama 3) and for sentencepiece (Gemma, Llama 2): the pieces of a text's tokens,
    one after another, are the text. Special tokens have their name. Rows of the embedding beyond the tokenizer are
    special, and empty.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    byte_level = "ByteLevel" in json.dumps([rules.get("decoder"), rules.get("pre_tokenizer")])
    added = {int(i): one for i, one in tokenizer.added_tokens_decoder.items()}
    known, found = len(tokenizer), []
    special = np.array([i >= known or (i in added and bool(added[i].special)) for i in range(n_tokens)], bool)
    special[[i for i in tokenizer.all_special_ids if i < n_tokens]] = True
    letters = _letters()
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(min(known, n_tokens))))):
        if token is None:  # a hole in the vocabulary
            special[i] = True
            found.append(b"")
        elif i in added or special[i]:
            found.append(str(token).encode(errors="replace"))
        elif byte_level:
            found.append(b"".join(letters.get(c) or c.encode() for c in token))
        elif byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
            found.append(bytes([int(byte[1], 16)]))
        else:
            found.append(token.replace("▁", " ").encode(errors="replace"))
    return found + [b""] * (n_tokens - len(found)), special


def _letters() -> dict[str, bytes]:
    """The letter by which byte-level BPE writes each byte (Radford et al. 2019); printable ones are themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
