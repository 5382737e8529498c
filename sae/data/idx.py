"""MNIST and its drop-in replacements: from their idx files to a TFDS data set, without TensorFlow.

TFDS's own builders read these files, and encode the images, with TensorFlow. The builder made here has the
same name, version and features, so stock `tfds.data_source("mnist", data_dir=...)` opens what it writes.
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
from pathlib import Path

import numpy as np

from sae.core.types import UserError

# The data sets that come as idx files, and mirrors tried after TFDS's own address. A file is used only if it
# has TFDS's checksum.
MIRRORS = {
    "mnist": ["https://ossci-datasets.s3.amazonaws.com/mnist/"],
    "fashion_mnist": ["https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"],
    "kmnist": [],
}
SPLITS = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
PATIENCE = 4.0  # seconds until a host that does not answer is given up


def prepare(name: str, data_dir: str) -> None:
    """Write the data set `name` of `MIRRORS` to `data_dir` in TFDS's array_record format (70,000 images: 14 s).

    The four idx files, .gz or not, are looked for under `folders(name, data_dir)`, then downloaded.
    An interrupted run leaves nothing that looks prepared: TFDS writes to another folder and renames it last.
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
        if not builder.is_prepared():  # else another process renamed its own copy into place first
            raise UserError(f"{name}: cannot be written to {data_dir} ({error}); give a data_dir with room") from None


def folders(name: str, data_dir: str) -> list[Path]:
    """Where idx files are looked for. The name is in each path, as all these data sets name their files alike."""
    return [Path(data_dir, *parts, name) for parts in ([], ["downloads", "manual"], ["downloads"])]


def read_idx(path: Path) -> np.ndarray:
    """The unsigned bytes of an idx file, gzipped or not: 0 0 8 ndim, ndim big-endian uint32 sizes, then the values."""
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
    """Fetch `path` from the first address that gives the right bytes; None, or in a few words why none did."""
    reasons = []
    for url in urls:
        host = urllib.parse.urlsplit(url).netloc
        if sys.stderr.isatty():
            print(f"downloading {url}", file=sys.stderr)
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
        part.replace(path)  # never a half file under the final name
        return None
    return "; ".join(reasons)


def _fetch(url: str) -> bytes:
    """Read `url`. A thread asks, as no socket time-out bounds the look-up of a host name."""
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def ask():
        try:
            opener = urllib.request.build_opener()  # urlopen would keep the proxies of its first call
            answer.put(opener.open(url, timeout=30))  # also the longest pause between two pieces
        except Exception as error:  # raised below, by the thread that waits
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


def _find(name: str, data_dir: str, original) -> dict[str, Path]:
    """The four idx files, by name."""
    files, missing, why = {}, [], None
    for file in (file for pair in SPLITS.values() for file in pair):
        places = [folder / form for folder in folders(name, data_dir) for form in (file, file.removesuffix(".gz"))]
        files[file] = next((place for place in places if place.is_file()), folders(name, data_dir)[-1] / file)
        if not files[file].is_file():
            if why is None:  # after one failure the rest is not tried: the error is to come in seconds
                urls = [address + file for address in (original.URL, *MIRRORS[name])]
                why = download(urls, _checksums(name)[original.URL + file].checksum, files[file])
            if why is not None:
                missing.append(file)
    if missing:
        here, *others = folders(name, data_dir)
        raise UserError(
            f"{name}: not prepared in {data_dir}, and the download failed ({why}); "
            f"put {', '.join(missing)} (.gz or unpacked) in {here} (or {', '.join(map(str, others))})"
        )
    return files


def _checksums(name: str) -> dict:
    """TFDS's own, by address. `original.url_infos` is the same, but needs a package that TFDS does not install."""
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


def _builder_cls(original, splits: dict[str, tuple[np.ndarray, np.ndarray]]):
    import tensorflow_datasets as tfds
    from PIL import Image

    with tfds.core.registered.skip_registration():

        class IdxBuilder(original):
            """`original` with its two methods that need TensorFlow replaced."""

            name = original.name
            url_infos = _checksums(original.name)  # else TFDS looks for them beside this file

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

            def _generate_examples(self, images, labels):
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield index, {"image": Image.fromarray(image), "label": int(label)}  # an array would need TF

    return IdxBuilder
