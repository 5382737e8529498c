"""What this process runs on: its memory, and where compiled programs are kept."""

import os
import platform
import resource
import sys
import zlib
from pathlib import Path

import jax
import psutil


def compiler_bytes() -> int:
    """What compiling takes of the device's memory and does not give back (measured on a CPU)."""
    return 2**28 if jax.default_backend() == "cpu" else 0


def keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache, for the next process; JAX_COMPILATION_CACHE_DIR says where else."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = cache_folder() / "xla"
        folder.mkdir(exist_ok=True)
    except OSError:
        return  # a home that cannot be written to costs compiling again, nothing else
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # the defaults keep only what took long to compile, and nothing at all on a CPU
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path:
    """Of this user and this kind of processor. Raises OSError where it cannot be made."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sparsity-lab" / _processor()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _processor() -> str:
    """Programs for a CPU use what it has, and a home may be shared by machines whose CPUs differ."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"


def used_bytes() -> int:
    """What this process holds now, in the device's memory or, on a CPU, in the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_in_use"] if stats else psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """The most that this process has held."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    try:  # not getrusage, in which a process starts from the peak of the one that started it
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes() -> int:
    """What this process could hold beside what it holds."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else psutil.virtual_memory().available
