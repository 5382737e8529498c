"""Patches of photographs, whitened or not: the kind of data of Olshausen & Field, without a download."""

import contextlib
import hashlib
import importlib.util
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from sae.core.files import located, sha256
from sae.core.text import nearest
from sae.core.types import UserError, definition, static
from sae.data.rows import Rows, rows
from sae.data.source import Normalize, Source

# Photographs inside the wheels themselves, never fetched. Left out are drawings, text, microscope, retina and star
# images; moon, clock_motion and coins (blurred, or objects on a plain ground); and motorcycle_right, which shows the
# same scene as motorcycle_left and would leak across the split.
COLOUR_PHOTOS = {
    "astronaut.png": "skimage/data",
    "chelsea.png": "skimage/data",
    "china.jpg": "sklearn/datasets/images",
    "coffee.png": "skimage/data",
    "flower.jpg": "sklearn/datasets/images",
    "motorcycle_left.png": "skimage/data",
    "rocket.jpg": "skimage/data",
}
GREY_PHOTOS = {
    "brick.png": "skimage/data",
    "camera.png": "skimage/data",
    "grass.png": "skimage/data",
    "gravel.png": "skimage/data",
}
# Two photographs whose contrast is that of the rest. They hold a fifth of all patch positions.
HELD_OUT_PHOTOS = ("coffee.png", "motorcycle_left.png")

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
HASHED = 64  # images whose contents are part of the fingerprint
LUMA = np.array([0.2125, 0.7154, 0.0721], np.float32)  # ITU-R BT.709, as skimage.color.rgb2gray


@definition
class ImagePatches(Source):
    """Square patches of photographs, whitened; whole photographs are held out. Olshausen & Field 1996.

    Rows are grey patches [size * size], or [size * size * 3] with `colour`, of the files' own (gamma-encoded) pixel
    values in [0, 1]. Every position in every image is equally likely, so an image counts in proportion to its number
    of positions. Without a `folder`, the photographs are the eleven in scikit-image and scikit-learn (with `colour`,
    the seven that are in colour). In a user's folder, transparent pixels are laid on white, and a grey file counts as
    a colour file with three equal channels.

    `whitening`:

    - `olshausen-field`: each channel of each whole image is filtered by R(f) = f exp(-(f / 0.8 f_N)^4), with f_N the
      Nyquist frequency. The rising part flattens the 1/f amplitude of natural scenes. The falling part removes
      the corners of the spectrum, where noise and aliasing are (Olshausen & Field 1996, 1997). Then all patches
      are divided by one number, so that the training pixels have standard deviation 1.
    - `zca`: training patches get identity covariance by U diag((s + e)^-1/2) U^T, for the eigenvectors U and
      eigenvalues s of the training covariance. e is `zca_epsilon` times the mean of s, so that directions
      with less variance than that are not blown up (Bell & Sejnowski 1997; Coates et al. 2011).
    - `none`: pixels as they are.

    `rescaling`, after whitening:

    - `ufldl`: a patch loses its own mean; values are clipped at 3 standard deviations of all training values, and
      mapped from there to [.1, .9], where sigmoid units can be (Ng's UFLDL exercise, "Sparse Autoencoder"). Use it with
      `normalize` none.
    - `none`: values as they are.
    """

    size: int = static(8, min=2)
    """Side of a patch, in pixels."""
    colour: bool = static(False)
    """Whether pixels have three channels; else they are grey (ITU-R BT.709 luma)."""
    whitening: Literal["none", "olshausen-field", "zca"] = static("olshausen-field")
    """none, olshausen-field (filter whole images) or zca (decorrelate patches)."""
    zca_epsilon: float = static(0.01, min=0)
    """What zca adds to the eigenvalues, as a fraction of their mean."""
    rescaling: Literal["none", "ufldl"] = static("none")
    """none, or ufldl (each patch's mean removed, clipped at 3 standard deviations, to [.1, .9])."""
    n_train: int = static(100_000, min=1)
    """Number of training patches."""
    n_held_out: int = static(20_000, min=1)
    """Number of held-out patches, from held-out images only."""
    split_seed: int = static(0, min=0)
    """Seed of the places where patches are cut. The choice of held-out images does not depend on it."""
    normalize: Normalize = static("centre")
    """What is done to patches after whitening: none, centre, unit-mean-norm, ... (see `sae.rows`)."""
    folder: str | None = static(None, path=True)
    """Folder of your own images, searched with its subfolders; None for those of scikit-image and scikit-learn."""
    held_out_images: tuple[str, ...] | None = static(None)
    """Names of the images to hold out, as in the folder; None for two built-in ones, or every fifth of your files."""

    def fingerprint(self) -> dict[str, str]:
        """The names and sizes of the images, and the hash of some of them."""
        images = self._images()
        some = list(images)[:: max(1, len(images) // HASHED)]
        sizes = repr([(name, path.stat().st_size) for name, path in images.items()])
        contents = "".join(sha256(images[name]) for name in some)
        digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:16]
        return {"images": f"{len(images)}", "names and sizes": digest(sizes), "sample of images": digest(contents)}

    def load(self) -> Rows:
        """Training rows [n_train, d_in] and held-out rows [n_held_out, d_in], float32."""
        images = self._images()
        held_out_names = self._held_out_names(images)
        # One seed per split, so that more training patches leave the held-out patches as they are.
        train = self._patches([path for name, path in images.items() if name not in held_out_names], self.n_train, 0)
        held_out = self._patches([images[name] for name in held_out_names], self.n_held_out, 1)
        if self.whitening == "olshausen-field":
            scale = train.std()
            if scale < 1e-6:  # nothing but rounding errors of float32
                raise UserError("ImagePatches: every training image is flat, so whitening leaves nothing")
            train, held_out = train / scale, held_out / scale
        elif self.whitening == "zca":
            train, held_out = _zca(train, held_out, self.zca_epsilon)
        elif self.whitening != "none":
            allowed = ("none", "olshausen-field", "zca")
            raise UserError(f"ImagePatches: whitening is '{self.whitening}'; {nearest(self.whitening, allowed)}")
        if self.rescaling == "ufldl":
            train, held_out = _ufldl(train, held_out)
        elif self.rescaling != "none":
            allowed = ("none", "ufldl")
            raise UserError(f"ImagePatches: rescaling is '{self.rescaling}'; {nearest(self.rescaling, allowed)}")
        shape = (self.size, self.size, 3) if self.colour else (self.size, self.size)
        return rows(train, held_out, self.normalize, "ImagePatches", image_shape=shape)

    def _images(self) -> dict[str, Path]:
        """{name: path} of every image, sorted by name."""
        if self.folder is None:
            photos = COLOUR_PHOTOS if self.colour else COLOUR_PHOTOS | GREY_PHOTOS
            return {name: _packaged(photos[name], name) for name in sorted(photos)}
        folder = located(self.folder)
        if not folder.is_dir():
            raise UserError(f"ImagePatches: no folder '{folder}'; give one that exists, or leave folder unset")
        images = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")  # "._x.jpg" is no image
        }
        if not images:
            raise UserError(f"ImagePatches: no images in '{folder}'; allowed: {', '.join(SUFFIXES)}")
        return images

    def _held_out_names(self, images: dict[str, Path]) -> list[str]:
        names = list(images)
        if self.held_out_images is not None:
            held_out = sorted(set(self.held_out_images))
        elif self.folder is None:
            held_out = list(HELD_OUT_PHOTOS)
        else:
            held_out = names[4::5] or names[-1:]
        for name in held_out:
            if name not in images:
                raise UserError(f"ImagePatches: held_out_images has '{name}', no such image; {nearest(name, names)}")
        if not 0 < len(held_out) < len(names):
            raise UserError(
                f"ImagePatches: {len(held_out)} of {len(names)} images held out; "
                f"allowed: at least one, with at least one left to train on (so two images or more)"
            )
        return held_out

    def _patches(self, paths: list[Path], n: int, split: int) -> np.ndarray:
        """[n, d_in] patches, uniform over the positions of all images together."""
        counts = np.array([_n_positions(path, self.size) for path in paths])
        ends = np.cumsum(counts)
        draws = np.random.default_rng([self.split_seed, split]).integers(ends[-1], size=n)
        drawn_from = np.searchsorted(ends, draws, side="right")

        patches = np.empty((n, self.size, self.size, 3 if self.colour else 1), np.float32)
        for i, path in enumerate(paths):  # one image in memory at a time
            rows_here = np.flatnonzero(drawn_from == i)
            if not rows_here.size:
                continue
            image = _pixels(path, self.colour)
            if self.whitening == "olshausen-field":
                image = olshausen_field(image)
            windows = np.lib.stride_tricks.sliding_window_view(image, (self.size, self.size), axis=(0, 1))
            top, left = np.divmod(draws[rows_here] - (ends[i] - counts[i]), windows.shape[1])
            patches[rows_here] = np.moveaxis(windows[top, left], 1, -1)
        return patches.reshape(n, -1)


def olshausen_field(image: np.ndarray) -> np.ndarray:
    """Filter each channel of an image [height, width, channels] by R(f) = f exp(-(f / 0.8 f_N)^4), f in units of f_N.

    A product of cosine transforms is the Fourier filter on the image reflected at its borders, so nothing wraps
    around from the opposite edge. f is in cycles per pixel, not per image, so it is the same for every image size.
    """
    height, width, _ = image.shape
    f = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    response = (f * np.exp(-((f / 0.8) ** 4))).astype(np.float32)
    from scipy.fft import dctn, idctn  # importing scipy takes a second, which only whitening needs

    return idctn(dctn(image, axes=(0, 1)) * response[:, :, None], axes=(0, 1))


def _zca(train: np.ndarray, held_out: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    mean = train.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(train - mean, rowvar=False))
    values = np.maximum(values, 0) + epsilon * values.mean()
    if values.min() <= 1e-12 * values.max():
        raise UserError("ImagePatches: zca meets a direction with no variance; set zca_epsilon above 0")
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    whitened = lambda split: ((split - mean) @ whiten).astype(np.float32)
    return whitened(train), whitened(held_out)


def _ufldl(train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centred = [split - split.mean(axis=1, keepdims=True) for split in (train, held_out)]
    limit = 3 * centred[0].std()
    if limit < 1e-6:
        raise UserError("ImagePatches: every training patch is flat, so rescaling leaves nothing")
    train, held_out = (0.5 + 0.4 * np.clip(split / limit, -1, 1) for split in centred)
    return train, held_out


def _packaged(folder: str, name: str) -> Path:
    package, _, inside = folder.partition("/")
    spec = importlib.util.find_spec(package)  # without importing it
    if spec is None or spec.origin is None or not (path := Path(spec.origin).parent / inside / name).is_file():
        raise UserError(f"ImagePatches: the installed {package} has no {inside}/{name}; set folder to your own images")
    return path


def _n_positions(path: Path, size: int) -> int:
    with _opened(path) as image:
        width, height = image.size
    if min(width, height) < size:
        raise UserError(
            f"ImagePatches: {path} is {width}x{height} pixels, smaller than a patch of {size}x{size}; "
            f"lower size to {min(width, height)} or remove it"
        )
    return (height - size + 1) * (width - size + 1)


def _pixels(path: Path, colour: bool) -> np.ndarray:
    """[height, width, 3 if colour else 1] float32 pixels of one image, in [0, 1]."""
    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        deep = image.mode.startswith(("I", "F"))  # 16-bit or float grey; Pillow's convert would clip it
        if deep:
            pixels = np.asarray(image, np.float32)[:, :, None] / (1 if image.mode == "F" else 65_535)
        else:
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    if deep and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"ImagePatches: {path} has pixels outside its range ({image.mode}); "
            f"allowed: 8-bit, 16-bit, or floats in [0, 1]"
        )
    if colour:
        return np.broadcast_to(pixels, pixels.shape[:2] + (3,))
    return pixels if deep else pixels @ LUMA[:, None]


@contextlib.contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # for a broken file Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        reason = str(error).partition("\n")[0]
        raise UserError(f"ImagePatches: cannot read {path} ({reason}); repair or remove it") from error
