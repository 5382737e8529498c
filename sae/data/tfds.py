"""Data sets of TensorFlow Datasets that have an image or a numeric feature, read without TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.files import located
from sae.core.normalization import Normalization
from sae.core.text import nearest
from sae.core.types import UserError, definition, static
from sae.data import idx
from sae.data.rows import Rows, rows
from sae.data.source import Normalize, Source


@definition
class Tfds(Source):
    """A data set of TensorFlow Datasets (https://www.tensorflow.org/datasets), prepared as array_record.

    Examples are flattened: d_in = prod(shape of the feature). With `patch_size` they are random square patches of
    images: d_in = patch_size² · channels. Images of integers are scaled to [0, 1] (uint8: /255); other
    features are taken as they are. Memory holds the stored dtype, so 60,000 MNIST images take 47 MB.

    MNIST, Fashion-MNIST and KMNIST are prepared on first use, from their idx files (`sae.data.idx`). Prepare any other
    data set once, where TensorFlow is installed, with `tfds build NAME --file_format=array_record`.
    """

    name: str = static()
    """Name in TFDS: mnist, fashion_mnist, mnist_corrupted/fog, my_dataset:1.0.0."""
    split: str = static("train")
    """Training examples, as a TFDS split: train, train[:90%], train+validation."""
    held_out_split: str = static("test")
    """Held-out examples, as a TFDS split that shares no example with `split`."""
    feature: str = static("image")
    """The feature of an example to read."""
    data_dir: str | None = static(None, path=True)
    """Folder of prepared data sets; None for $TFDS_DATA_DIR or else ~/tensorflow_datasets."""
    patch_size: int | None = static(None, min=1)
    """Side of random patches of images, in pixels; None for whole examples."""
    n_patches: int = static(100_000, min=1)
    """Number of training patches; a tenth as many are held out, from the images of `held_out_split`."""
    split_seed: int = static(0, min=0)
    """Seed of the places of the patches."""
    max_gib: float = static(8.0, min=0)
    """Most memory, in GiB, that the examples of one split may take as stored; loading more is an error."""
    normalize: Normalize = static("centre")
    """What is done to rows: none, centre, unit-mean-norm, centre-unit-mean-norm or standardize (see `sae.rows`)."""

    def load(self) -> Rows:
        """Read both splits into memory (70,000 MNIST images: 9 s). Raises UserError, within seconds with no network."""
        with _quietly() as tfds:
            builder = self._open(tfds)
            connector = self._feature(builder)
            self._check_splits(builder)
            if self.patch_size is None:
                train, held_out = (self._whole(builder, connector, s) for s in (self.split, self.held_out_split))
            else:
                cut = functools.partial(self._patches, builder, connector, self.patch_size)
                train = cut(self.split, self.n_patches, [self.split_seed, 0])
                held_out = cut(self.held_out_split, -(-self.n_patches // 10), [self.split_seed, 1])

        image_shape = None
        if _is_image(connector):
            *height_width, channels = connector.shape
            if self.patch_size is not None:
                height_width = [self.patch_size] * 2
            image_shape = (*height_width,) if channels == 1 else (*height_width, channels)
        loaded = rows(train, held_out, self.normalize, self._what, image_shape)
        if image_shape and train.dtype.kind == "u" and self.normalize in ("none", "centre"):  # others undo any scale
            unit = np.float32(1 / np.iinfo(train.dtype).max)
            scaled = Normalization(loaded.normalization.shift, loaded.normalization.scale * unit)
            loaded = dataclasses.replace(loaded, normalization=scaled, mean=loaded.mean * unit)
        return loaded

    def fingerprint(self) -> dict[str, str]:
        """Its full name and version, and the sizes of the shards of each split."""
        with _quietly() as tfds:
            builder = self._open(tfds)
            self._check_splits(builder)
            splits = builder.info.splits
            shards = [
                (part.filename, part.skip, part.take)
                for split in (self.split, self.held_out_split)
                for part in splits[split].file_instructions
            ]
        lengths = {name: (split.num_bytes, split.shard_lengths) for name, split in splits.items()}
        digest = hashlib.sha256(repr(([(Path(name).name, *cut) for name, *cut in shards], lengths)).encode())
        return {"version": builder.info.full_name, "shards": digest.hexdigest()[:16]}

    @property
    def _what(self) -> str:
        return f"Tfds {self.name}"

    def _open(self, tfds: Any) -> Any:
        """The builder of the prepared data set, made from its files alone; none of the data set's code runs."""
        if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?", self.name):
            raise UserError(f"Tfds: name: got {self.name!r}, allowed: like mnist, mnist_corrupted/fog or mine:1.0.0")
        data_dir = str(located(self.data_dir or tfds.core.constants.get_default_data_dir()))
        open_files = tfds.core.read_only_builder.builder_from_files
        try:
            try:
                builder = open_files(self.name, data_dir=data_dir)
            except tfds.core.registered.DatasetNotFoundError:
                if self.name not in idx.MIRRORS:
                    raise self._not_prepared(tfds, data_dir) from None
                idx.prepare(self.name, data_dir)
                builder = open_files(self.name, data_dir=data_dir)
        except UserError:
            raise
        except Exception as error:  # for broken files TFDS raises ValueError, OSError, json and protobuf errors
            raise UserError(
                f"{self._what}: cannot be opened in {data_dir} ({_first_line(error)}); "
                "delete its folder there and prepare it again"
            ) from error
        formats = sorted(f.value for f in builder.info.available_file_formats())
        if "array_record" not in formats:
            raise UserError(
                f"{self._what}: prepared in {builder.data_dir} as {', '.join(formats)}; allowed: array_record; "
                f"where TensorFlow is installed: tfds convert_format --dataset_version_dir={builder.data_dir} "
                "--out_file_format=array_record"
            )
        return builder

    def _not_prepared(self, tfds: Any, data_dir: str) -> UserError:
        base = re.split("[/:]", self.name)[0]
        known = tfds.list_builders(with_community_datasets=False)  # the list of community data sets needs a network
        found = [path for depth in ("*/*", "*/*/*") for path in Path(data_dir).glob(f"{depth}/features.json")]
        prepared = sorted(path.parent.relative_to(data_dir).as_posix() for path in found)
        message = f"{self._what}: not prepared in {data_dir}"
        if same_base := [name for name in prepared if name.split("/")[0] == base]:
            message += f", where there is {', '.join(same_base)}"
        if base in known or same_base:
            build = f"tfds build {self.name} --file_format=array_record --data_dir={data_dir}"
            return UserError(f"{message}; prepare it once, where TensorFlow is installed: {build}")
        close = nearest(base, {*known, *idx.MIRRORS, *(name.split("/")[0] for name in prepared)})
        if not close.startswith("close"):  # all names of TFDS, which are hundreds
            close = "see https://www.tensorflow.org/datasets/catalog"
        return UserError(f"{message}, and TFDS has no data set of this name; {close}")

    def _feature(self, builder: Any) -> Any:
        features = {name: connector for name, connector in builder.info.features.items() if _is_numeric(connector)}
        if self.feature not in features:
            raise UserError(
                f"{self._what}: feature: got {self.feature!r}, allowed (images and numeric arrays): "
                + (", ".join(f"{name} {list(connector.shape)}" for name, connector in features.items()) or "none")
            )
        connector = features[self.feature]
        shape, is_image = connector.shape, _is_image(connector)
        if self.patch_size is not None and not is_image:
            raise UserError(f"{self._what}: feature {self.feature!r} is not an image; leave out patch_size")
        if None in (shape if self.patch_size is None else shape[2:]):
            fix = "set patch_size" if is_image and self.patch_size is None else "choose another feature"
            raise UserError(
                f"{self._what}: feature {self.feature!r} has shape {list(shape)}, and examples of different sizes "
                f"cannot be flattened; {fix}"
            )
        return connector

    def _check_splits(self, builder: Any) -> None:
        splits = builder.info.splits
        allowed = ", ".join(f"{name} ({split.num_examples})" for name, split in splits.items())
        parts = []
        for field in ("split", "held_out_split"):
            value = getattr(self, field)
            try:
                parts.append(splits[value].file_instructions)
                if not splits[value].num_examples:
                    raise ValueError("no examples there")
            except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
                problem = _first_line(error).split(". Should be")[0]
                raise UserError(
                    f"{self._what}: {field}: got {value!r} ({problem}), allowed: {allowed}, or a slice of one, "
                    f"{next(iter(splits))}[:90%]"
                ) from None
        for a in parts[0]:
            for b in parts[1]:
                if a.filename == b.filename and a.skip < b.skip + b.take and b.skip < a.skip + a.take:
                    raise UserError(
                        f"{self._what}: split {self.split!r} and held_out_split {self.held_out_split!r} share "
                        "examples; allowed: splits that share none, like train[:90%] and train[90%:]"
                    )

    def _check_size(self, split: str, n: int, d_in: int, dtype: np.dtype) -> None:
        gib = n * d_in * dtype.itemsize / 2**30
        if gib > self.max_gib:
            raise UserError(
                f"{self._what}: {split} takes {gib:.3g} GiB as {dtype} [{n}, {d_in}], allowed: max_gib = "
                f"{self.max_gib:g}; take a slice of the split, raise max_gib, or write it as .npy shards for Arrays"
            )

    def _whole(self, builder: Any, connector: Any, split: str) -> np.ndarray:
        """[n, prod(shape)] examples, in the order of the files."""
        n, d_in = builder.info.splits[split].num_examples, math.prod(connector.shape)
        dtype = np.dtype(connector.np_dtype)
        self._check_size(split, n, d_in, dtype)
        out = np.empty((n, d_in), dtype)
        for i, example in enumerate(self._read(builder, connector, split, range(n))):
            if example.shape != connector.shape:  # such as a colour image among grey ones
                raise UserError(
                    f"{self._what}: {split}: example {i} has shape {list(example.shape)} where the feature "
                    f"{self.feature!r} says {list(connector.shape)}; prepare the data set again"
                )
            out[i] = example.reshape(-1)
        return out

    def _patches(
        self, builder: Any, connector: Any, size: int, split: str, n_patches: int, seed: list[int]
    ) -> np.ndarray:
        """[n_patches, size * size * channels] patches, each from a random image, at a random place in it."""
        channels, dtype = connector.shape[-1], np.dtype(connector.np_dtype)
        self._check_size(split, n_patches, size * size * channels, dtype)
        rng = np.random.default_rng(seed)
        image_of = rng.integers(builder.info.splits[split].num_examples, size=n_patches)
        places = rng.random((n_patches, 2))  # in [0, 1), as images may differ in size
        by_image = np.argsort(image_of, kind="stable")  # so that each image is read once, in the order of the files
        images, starts = np.unique(image_of[by_image], return_index=True)
        out = np.empty((n_patches, size * size * channels), dtype)
        for i, image, patches in zip(
            images, self._read(builder, connector, split, images), np.split(by_image, starts[1:]), strict=True
        ):
            height, width = image.shape[:2]
            if image.shape[2:] != (channels,) or min(height, width) < size:
                raise UserError(
                    f"{self._what}: {split}: image {i} has shape {list(image.shape)}; allowed with patch_size = "
                    f"{size}: [>= {size}, >= {size}, {channels}]; choose a smaller patch_size or another split"
                )
            for patch, (y, x) in zip(patches, places[patches] * (height - size + 1, width - size + 1), strict=True):
                y, x = int(y), int(x)
                out[patch] = image[y : y + size, x : x + size].reshape(-1)
        return out

    def _read(
        self, builder: Any, connector: Any, split: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """The feature of some examples. Nothing else is decoded, so a label map or a caption costs nothing."""
        import tensorflow_datasets as tfds

        only = tfds.features.FeaturesDict({self.feature: connector})
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        try:
            source = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
            for start in range(0, len(indices), 1024):
                for record in source.__getitems__([int(i) for i in indices[start : start + 1024]]):
                    example: Any = only.deserialize_example_np(record)
                    yield np.asarray(example[self.feature])
        except Exception as error:  # array_record, protobuf and Pillow each have their own
            raise UserError(
                f"{self._what}: {split} cannot be read from {builder.data_dir} ({_first_line(error)}); "
                "delete that folder and prepare the data set again"
            ) from None


def _is_image(connector: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(connector, tfds.features.Image) and len(connector.shape) == 3  # not an animated GIF


def _is_numeric(connector: Any) -> bool:
    """Whether a feature is an image or an array of numbers, and not a label, a text or a nested data set."""
    shape, dtype = connector.shape, connector.np_dtype
    if not isinstance(shape, tuple) or isinstance(dtype, dict):
        return False
    return len(shape) > 0 and np.dtype(dtype).kind in "biuf"


@contextlib.contextmanager
def _quietly() -> Generator[Any]:
    """tensorflow_datasets, kept from printing; progress bars on a terminal only. Its import takes half a second."""
    import tensorflow_datasets as tfds
    from absl import logging

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield tfds
    finally:
        logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
