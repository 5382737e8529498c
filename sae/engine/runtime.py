"""The process and its device: memory, and the cache of compiled programs."""

import contextlib
import hashlib
import os
import platform
import resource
import sys
import zlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jax
import psutil

from sae.core.files import expanded
from sae.core.types import UserError

DIGEST = hashlib.sha256().digest_size
MOST_PROGRAMS = 32  # training programs that a process keeps
_programs: set[Hashable] = set()


def compiler_bytes() -> int:
    """Bytes of the device's memory that compiling takes and does not give back (measured on a CPU)."""
    return 2**28 if jax.default_backend() == "cpu" else 0


def keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache, for the next process, unless JAX_COMPILATION_CACHE_DIR is set."""
    if jax.config.jax_compilation_cache_dir is not None:  # ty: ignore[missing-attribute]: made at run time
        return
    try:
        folder = cache_folder() / "xla"
        folder.mkdir(exist_ok=True)
    except OSError:
        return  # without a cache, the next process compiles again; nothing else is lost
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # jax's defaults keep only what took long to compile, and nothing at all on a CPU
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with contextlib.suppress(ImportError, AttributeError):  # its cache has no public name: another JAX keeps its own
        from jax._src import compilation_cache

        if compilation_cache._cache is None:
            compilation_cache._initialize_cache()
            if compilation_cache._cache is not None:
                compilation_cache._cache = CheckedCache(compilation_cache._cache)


class CheckedCache:
    """JAX's cache of compiled programs, with a checksum before every entry.

    JAX writes an entry in place, runs what it finds as machine code, and never replaces it. Here an entry that was cut
    off or damaged is deleted, so that the program is compiled and written again.
    """

    def __init__(self, cache: Any) -> None:
        self._cache, self._path = cache, cache._path  # JAX looks at the path

    def get(self, key: str) -> bytes | None:
        """The entry of a key; None where there is none, or it is damaged."""
        try:
            entry = self._cache.get(key)
            if entry is None:
                return None
            checksum, value = entry[:DIGEST], entry[DIGEST:]
            if hashlib.sha256(value).digest() == checksum:
                return value
            (Path(self._path) / f"{key}-cache").unlink(missing_ok=True)
        except OSError:
            pass  # not readable: compiled again
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keep an entry. Where the disk is full, it is compiled again next time."""
        with contextlib.suppress(OSError):
            self._cache.put(key, hashlib.sha256(value).digest() + value)


def forget_old_programs(program: Hashable) -> None:
    """Note a training program that is about to be compiled; where there were many others, let JAX forget them all.

    JAX keeps every program and its trace for as long as the process lives, some 2 to 20 MiB each. A notebook that tries
    1,000 definitions would grow without end. What is needed again is read from the cache on the disk.
    """
    if program not in _programs and len(_programs) >= MOST_PROGRAMS:
        _programs.clear()
        jax.clear_caches()
    _programs.add(program)


def cache_folder() -> Path:
    """The cache folder for this user and CPU type. Raises OSError where it cannot be made."""
    try:
        folder = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sparsity-lab" / _processor()
    except UserError as error:  # no home
        raise OSError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _processor() -> str:
    """A name for this CPU type. Compiled programs use all of its instructions, and a home may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"


def used_bytes() -> int:
    """Bytes that this process holds now, in the device's memory or, on a CPU, in the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_in_use"] if stats else psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """The largest number of bytes that this process has held."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    try:  # getrusage would start from the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes() -> int:
    """Bytes that this process could hold beside those that it holds."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else psutil.virtual_memory().available
