"""MNIST and its drop-in replacements: idx files turned into a TFDS data set, without TensorFlow.

TFDS's own builders read these files, and encode the images, with TensorFlow. The builder made here has the
same name, version and features, so `tfds.data_source("mnist", data_dir=...)` opens what it writes.
"""

import gzip
import hashlib
import http.client
import os
import queue
import struct
import sys
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.console import say
from sae.core.types import UserError

# The data sets that come as idx files, with the mirrors to try after TFDS's own address. A file is used only if its
# checksum is the one in TFDS.
MIRRORS = {
    "mnist": ["https://ossci-datasets.s3.amazonaws.com/mnist/"],
    "fashion_mnist": ["https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"],
    "kmnist": [],
}
SPLITS = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
PATIENCE = 4.0  # seconds to wait for a host's first answer


def prepare(name: str, data_dir: str) -> None:
    """Write the data set `name` of `MIRRORS` to `data_dir` in TFDS's array_record format (70,000 images: 14 s).

    The four idx files, gzipped or not, are taken from `folders(name, data_dir)`, else downloaded. An interrupted run
    leaves nothing that looks prepared, as TFDS writes to another folder and renames it at the end.
    Raises UserError.
    """
    import tensorflow_datasets as tfds

    original = tfds.core.registered.imported_builder_cls(name)
    files = _find(name, data_dir, original)
    classes = original(data_dir=data_dir).info.features["label"].num_classes
    splits = {split: _read_split(files[images], files[labels], classes) for split, (images, labels) in SPLITS.items()}
    builder = _builder_cls(original, splits)(data_dir=data_dir)
    try:
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except OSError as error:
        if not builder.is_prepared():  # if it is, another process was first to rename its copy into place
            raise UserError(f"{name}: cannot be written to {data_dir} ({error}); choose a data_dir with room") from None


def folders(name: str, data_dir: str) -> list[Path]:
    """The folders that may hold idx files. Each path has the name, as all these data sets name their files alike."""
    return [Path(data_dir, *parts, name) for parts in ([], ["downloads", "manual"], ["downloads"])]


def read_idx(path: Path) -> np.ndarray:
    """The unsigned bytes of an idx file, gzipped or not.

    The format: bytes 0, 0, 8, ndim; then ndim big-endian uint32 sizes; then the values. Raises UserError.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); download it again") from None
    n_header = 4 + 4 * data[3] if len(data) > 4 else 4
    if data[:3] != b"\0\0\x08" or len(data) < n_header:
        raise UserError(f"{path}: starts with {data[:4]!r}, not an idx file of unsigned bytes; download it again")
    shape = struct.unpack(f">{data[3]}I", data[4:n_header])
    values = np.frombuffer(data, np.uint8, offset=n_header)
    if values.size != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path}: {values.size} values where its header says {shape}; download it again")
    return values.reshape(shape)


def download(urls: list[str], sha256: str, path: Path) -> str | None:
    """Fetch `path` from the first address that gives the right bytes -> None, or why no address did."""
    reasons = []
    for url in urls:
        host = urllib.parse.urlsplit(url).netloc
        if sys.stderr.isatty():
            say(f"downloading {url}", sys.stderr)
        try:
            data = _fetch(url)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{host}: {getattr(error, 'reason', error)}")
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            reasons.append(f"{host}: wrong checksum")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        part.write_bytes(data)
        part.replace(path)  # never half a file under the final name
        return None
    return "; ".join(reasons)


def _fetch(url: str) -> bytes:
    """Read `url`. A thread asks, because no socket time-out bounds the look-up of a host name."""
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            opener = urllib.request.build_opener()  # urlopen keeps the proxies of its first call
            answer.put(opener.open(url, timeout=30))  # also bounds a pause between two pieces
        except Exception as error:  # the waiting thread raises it, below
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=PATIENCE)
    except queue.Empty:
        raise TimeoutError(f"no answer in {PATIENCE:.0f} s") from None
    if isinstance(response, Exception):
        raise response
    with response:
        return response.read()


def _find(name: str, data_dir: str, original: Any) -> dict[str, Path]:
    """{file name: path} of the four idx files, downloaded where they are missing. Raises UserError."""
    files, missing, why = {}, [], None
    for file in (file for pair in SPLITS.values() for file in pair):
        places = [folder / form for folder in folders(name, data_dir) for form in (file, file.removesuffix(".gz"))]
        files[file] = next((place for place in places if place.is_file()), folders(name, data_dir)[-1] / file)
        if not files[file].is_file():
            if why is None:  # after one failure the rest are not tried, so that the error comes in seconds
                urls = [address + file for address in (original.URL, *MIRRORS[name])]
                why = download(urls, _checksums(name)[original.URL + file].checksum, files[file])
            if why is not None:
                missing.append(file)
    if missing:
        first, *others = folders(name, data_dir)
        raise UserError(
            f"{name}: not prepared in {data_dir}, and the download failed ({why}); "
            f"put {', '.join(missing)} (.gz or unpacked) in {first} (or {', '.join(map(str, others))})"
        )
    return files


def _checksums(name: str) -> dict:
    """{address: TFDS's checksum}. `original.url_infos` is the same, but needs a package that TFDS does not install."""
    import tensorflow_datasets as tfds

    return tfds.core.download.checksums.load_url_infos(tfds.core.tfds_path() / "url_checksums" / f"{name}.txt")


def _read_split(images_path: Path, labels_path: Path, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28) or not len(images):
        raise UserError(f"{images_path}: shape {list(images.shape)}, allowed: [n >= 1, 28, 28]; download it again")
    if labels.shape != images.shape[:1] or labels.max(initial=0) >= n_classes:
        raise UserError(
            f"{labels_path}: shape {list(labels.shape)}, largest label {labels.max(initial=0)}; allowed: one label "
            f"below {n_classes} for each of the {len(images)} images of {images_path.name}"
        )
    return images, labels


def _builder_cls(original: Any, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    import tensorflow_datasets as tfds
    from PIL import Image

    with tfds.core.registered.skip_registration():

        class IdxBuilder(original):
            """`original` with its two methods that need TensorFlow replaced."""

            name = original.name
            url_infos = _checksums(original.name)  # TFDS would look for them beside this file

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
                return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

            def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield (
                        index,
                        {"image": Image.fromarray(image), "label": int(label)},
                    )  # an array would need TensorFlow

    return IdxBuilder
