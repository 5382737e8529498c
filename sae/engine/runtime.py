"""The process and its device: memory, and the cache of compiled programs."""

import os
import platform
import resource
import sys
import zlib
from pathlib import Path

import jax
import psutil

from sae.core.files import expanded
from sae.core.types import UserError


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
