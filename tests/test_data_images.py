"""Digits and ImagePatches: shapes, a split that does not leak, whitening that whitens, errors that help."""

import numpy as np
import pytest
from PIL import Image

from sae.core.types import UserError
from sae.data.digits import Digits
from sae.data.image_patches import (
    COLOUR_PHOTOS,
    GREY_PHOTOS,
    HELD_OUT_PHOTOS,
    ImagePatches,
    _packaged,
    _pixels,
    olshausen_field,
)

FEW = dict(n_train=2_000, n_held_out=500)


def same(a, b):
    same_shift = np.array_equal(a.normalization.shift, b.normalization.shift)
    return same_shift and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("train", "held_out", "mean"))


def message(source):
    """The one-line message of the UserError that `source.load()` must raise."""
    with pytest.raises(UserError) as caught:
        source.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_flat(folder, greys, side=12):
    """One flat image per grey level, named by it, so that a patch's value says which image it is from."""
    for grey in greys:
        Image.new("L", (side, side), grey).save(folder / f"{grey:03}.png")


def folder_patches(folder, **fields):
    return ImagePatches(**dict(folder=str(folder), size=4, whitening="none", normalize="none", **FEW) | fields)


# Digits


def test_digits_shapes_and_range():
    digits = Digits(normalize="none").load()
    assert digits.train.shape == (1400, 64) and digits.held_out.shape == (397, 64)
    assert digits.image_shape == (8, 8)
    pixels = np.concatenate([digits.train, digits.held_out])
    assert pixels.min() == 0 and pixels.max() == 1


def test_digits_split_is_seeded_and_complete():
    assert same(Digits().load(), Digits().load())
    assert not same(Digits().load(), Digits(split_seed=1).load())
    # No two of the 1,797 images are equal, so a row tells which image it is.
    digits = Digits(n_held_out=100).load()
    assert len(np.unique(np.concatenate([digits.train, digits.held_out]), axis=0)) == 1797


def test_digits_centre_leaves_no_mean():
    digits = Digits().load()
    np.testing.assert_allclose(digits.examples(digits.train).mean(0), 0, atol=1e-5)


def test_digits_needs_both_splits():
    assert "1 to 1796" in message(Digits(n_held_out=1797))


# ImagePatches: shapes and the split


@pytest.mark.parametrize("whitening", ["none", "olshausen-field", "zca"])
@pytest.mark.parametrize("colour", [False, True])
def test_patch_shapes(whitening, colour):
    patches = ImagePatches(size=6, colour=colour, whitening=whitening, **FEW).load()
    d_in = 6 * 6 * (3 if colour else 1)
    assert patches.train.shape == (2_000, d_in) and patches.held_out.shape == (500, d_in)
    assert patches.train.dtype == np.float32
    assert patches.image_shape == ((6, 6, 3) if colour else (6, 6))
    np.testing.assert_allclose(patches.examples(patches.train).mean(0), 0, atol=1e-4)


def test_same_definition_same_bytes():
    assert same(ImagePatches(**FEW).load(), ImagePatches(**FEW).load())
    assert not same(ImagePatches(**FEW).load(), ImagePatches(**FEW, split_seed=1).load())


def test_more_training_patches_leave_the_held_out_ones():
    few, more = (ImagePatches(whitening="none", n_held_out=500, n_train=n).load() for n in (100, 3_000))
    assert np.array_equal(few.held_out, more.held_out)


def test_every_built_in_photo_is_in_the_wheels():
    for name, folder in (COLOUR_PHOTOS | GREY_PHOTOS).items():
        pixels = _pixels(_packaged(folder, name), colour=False)
        assert min(pixels.shape[:2]) >= 300 and pixels.std() > 0.05
    assert set(HELD_OUT_PHOTOS) < set(COLOUR_PHOTOS)


def test_colour_photos_have_colour():
    for name, folder in COLOUR_PHOTOS.items():
        assert np.ptp(_pixels(_packaged(folder, name), colour=True), axis=2).mean() > 0.02


def test_every_fifth_file_is_held_out(tmp_path):
    save_flat(tmp_path, range(10, 210, 20))  # ten images
    patches = folder_patches(tmp_path).load()
    seen = [set(np.unique((split * 255).round()).astype(int)) for split in (patches.train, patches.held_out)]
    assert seen[1] == {90, 190}
    assert seen[0] == set(range(10, 210, 20)) - seen[1]


def test_named_images_are_held_out(tmp_path):
    (tmp_path / "sub").mkdir()
    save_flat(tmp_path, [10, 20])
    save_flat(tmp_path / "sub", [30, 40])
    patches = folder_patches(tmp_path, held_out_images=("sub/030.png", "010.png")).load()
    seen = [set(np.unique((split * 255).round()).astype(int)) for split in (patches.train, patches.held_out)]
    assert seen == [{20, 40}, {10, 30}]


def test_two_files_are_enough(tmp_path):
    save_flat(tmp_path, [10, 20])
    # One flat image to train on has no variance: rows says so. The split itself is one and one.
    assert "no variance" in message(folder_patches(tmp_path))


def test_positions_are_uniform(tmp_path):
    # Each pixel's value is its own position, in an image of 9x6 and one of 5x5 positions.
    for name, (height, width), first in (("a", (12, 9), 0), ("b", (8, 8), 200)):
        values = first + np.arange(height * width).reshape(height, width)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"{name}.png")
    save_flat(tmp_path, [255])
    patches = folder_patches(tmp_path, n_train=40_000, held_out_images=("255.png",)).load()
    corners, counts = np.unique((patches.train[:, 0] * 65_535).round().astype(int), return_counts=True)
    expected = [9 * i + j for i in range(9) for j in range(6)] + [200 + 8 * i + j for i in range(5) for j in range(5)]
    assert corners.tolist() == expected
    mean = 40_000 / len(expected)
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_patch_is_a_crop_in_row_order(tmp_path):
    pixels = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3) % 251
    Image.fromarray(pixels).save(tmp_path / "a.png")
    save_flat(tmp_path, [0], side=12)
    patches = folder_patches(tmp_path, colour=True, held_out_images=("000.png",)).load()
    crops = {pixels[i : i + 4, j : j + 4].tobytes() for i in range(9) for j in range(6)}
    assert {(row * 255).round().astype(np.uint8).tobytes() for row in patches.train} == crops


# ImagePatches: whitening


def radial_power(images):
    """Mean power in tenths of the Nyquist frequency, [10], of mean-free Hann-windowed images."""
    power = np.zeros(10)
    for image in images:
        image = image[:, :, 0] - image.mean()
        image = image * np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])
        spectrum = np.abs(np.fft.fft2(image)) ** 2
        f = 2 * np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1]))
        ring = np.minimum((10 * f).astype(int), 10)
        power += np.bincount(ring.ravel(), spectrum.ravel())[:10] / np.bincount(ring.ravel())[:10]
    return power / len(images)


def test_olshausen_field_flattens_the_spectrum():
    names = [name for name in COLOUR_PHOTOS | GREY_PHOTOS if name not in HELD_OUT_PHOTOS]
    photos = [_pixels(_packaged((COLOUR_PHOTOS | GREY_PHOTOS)[name], name), colour=False) for name in names]
    raw, white = radial_power(photos), radial_power([olshausen_field(photo) for photo in photos])
    fall = [power[:6].max() / power[:6].min() for power in (raw, white)]  # below .6 f_N, where the filter rises
    assert fall[0] > 100 and fall[1] < 5
    assert white[9] < 0.1 * white[:6].mean()  # the corners of the spectrum are gone


@pytest.mark.parametrize("cycles", [4, 16, 40])
def test_olshausen_field_has_the_published_response(cycles):
    side = 128
    wave = np.cos(np.pi * cycles * (np.arange(side) + 0.5) / side)  # cycles / side of the Nyquist frequency
    image = np.broadcast_to(wave, (side, side)).astype(np.float32)[:, :, None]
    f = cycles / side
    np.testing.assert_allclose(olshausen_field(image), image * f * np.exp(-((f / 0.8) ** 4)), atol=1e-5)


def test_olshausen_field_does_not_wrap_around():
    side = 256
    ramp = np.broadcast_to(np.linspace(0, 1, side, dtype=np.float32), (side, side))
    f = 2 * np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    wrapped = np.fft.ifft2(np.fft.fft2(ramp) * f * np.exp(-((f / 0.8) ** 4))).real
    assert np.abs(olshausen_field(ramp[:, :, None])).max() < 0.1 * np.abs(wrapped).max()


def test_olshausen_field_units():
    patches = ImagePatches(**FEW).load()
    np.testing.assert_allclose(patches.train.std(), 1, atol=1e-4)
    assert 0.8 < patches.held_out.std() < 1.25  # the held-out photographs have the contrast of the others
    assert np.abs(patches.normalization.shift).max() < 0.1  # the filter removes the mean of an image


def test_zca_covariance():
    patches = ImagePatches(whitening="zca", n_train=20_000).load()
    raw = ImagePatches(whitening="none", n_train=20_000).load()
    leading = np.linalg.eigh(np.cov(raw.train, rowvar=False))[1][:, ::-1][:, :15]
    before, after = (np.cov(rows.train @ leading, rowvar=False) for rows in (raw, patches))
    assert before[0, 0] / before[14, 14] > 100
    np.testing.assert_allclose(after, np.eye(15), atol=0.15)
    values = np.linalg.eigvalsh(np.cov(patches.train, rowvar=False))
    assert values.max() < 1.001 and values.min() > 0  # epsilon holds weak directions back, none is blown up
    # ZCA is the whitening that stays nearest to the pixels: a patch still looks like itself.
    centred = raw.train - raw.train.mean(0)
    assert np.mean(np.diag(np.corrcoef(centred.T, patches.train.T)[:64, 64:])) > 0.1


def test_zca_without_epsilon_is_exact():
    train = ImagePatches(size=4, whitening="zca", zca_epsilon=0.0, n_train=20_000).load().train
    np.testing.assert_allclose(np.cov(train, rowvar=False), np.eye(16), atol=1e-3)


def test_ufldl_rescaling_is_that_of_its_exercise():
    fields = dict(n_train=3_000, n_held_out=500, normalize="none")
    plain, found = ImagePatches(**fields).load(), ImagePatches(rescaling="ufldl", **fields).load()
    train, held_out = (split - split.mean(axis=1, keepdims=True) for split in (plain.train, plain.held_out))
    limit = 3 * train.std()
    for rows, patches in ((train, found.train), (held_out, found.held_out)):
        inside = np.abs(rows) < limit
        assert 0.9 < inside.mean() < 1, "some values are clipped"
        np.testing.assert_allclose(patches[inside], 0.5 + 0.4 * rows[inside] / limit, atol=1e-5)
        np.testing.assert_allclose(patches[~inside], np.where(rows[~inside] > 0, 0.9, 0.1), atol=1e-5)


# ImagePatches: a user's own files


def test_file_formats(tmp_path):
    ramp = np.linspace(0, 1, 20 * 30).reshape(20, 30)
    eight = Image.fromarray((255 * ramp).round().astype(np.uint8))
    sixteen = Image.fromarray((65_535 * ramp).round().astype(np.uint16))
    eight.save(tmp_path / "grey.png")
    eight.save(tmp_path / "grey.BMP")
    eight.convert("RGB").save(tmp_path / "rgb.webp", lossless=True)
    eight.convert("RGB").save(tmp_path / "rgb.jpg", quality=100)
    eight.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.tiff")
    eight.convert("P").save(tmp_path / "palette.png")
    eight.convert("RGBA").save(tmp_path / "opaque.png")
    sixteen.save(tmp_path / "sixteen.png")
    sixteen.save(tmp_path / "sixteen.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    for path in sorted(tmp_path.iterdir()):
        for colour in (False, True):
            pixels = _pixels(path, colour)
            assert pixels.shape == (20, 30, 3 if colour else 1) and pixels.dtype == np.float32
            np.testing.assert_allclose(pixels, np.broadcast_to(ramp[:, :, None], pixels.shape), atol=0.02)
    np.testing.assert_allclose(_pixels(tmp_path / "sixteen.png", False)[:, :, 0], ramp, atol=1e-5)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._grey.png").write_text("what macOS leaves behind")
    assert len(folder_patches(tmp_path)._images()) == 10
    for colour in (False, True):
        assert folder_patches(tmp_path, colour=colour).load().train.shape == (2_000, 48 if colour else 16)


def test_luma_and_transparency(tmp_path):
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "green.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    np.testing.assert_allclose(_pixels(tmp_path / "green.png", False), 0.7154, atol=1e-4)
    np.testing.assert_allclose(_pixels(tmp_path / "green.png", True)[0, 0], [0, 1, 0])
    np.testing.assert_allclose(_pixels(tmp_path / "clear.png", True), 1)  # transparent: white, not the hidden red


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    Image.new("L", (16, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert _pixels(tmp_path / "turned.jpg", False).shape == (16, 8, 1)


# ImagePatches: errors


def test_folder_errors(tmp_path):
    assert "nowhere" in message(ImagePatches(folder=str(tmp_path / "nowhere")))
    assert ".webp" in message(folder_patches(tmp_path))
    save_flat(tmp_path, [10])
    assert "two images or more" in message(folder_patches(tmp_path))


def test_held_out_errors(tmp_path):
    assert "coffee.png" in message(ImagePatches(held_out_images=("cofee.png",)))
    assert "'camera.png'" in message(ImagePatches(colour=True, held_out_images=("camera.png",)))  # a grey photograph
    assert "0 of 11" in message(ImagePatches(held_out_images=()))
    save_flat(tmp_path, [10, 20])
    assert "2 of 2" in message(folder_patches(tmp_path, held_out_images=("010.png", "020.png")))


def test_small_image_is_named(tmp_path):
    save_flat(tmp_path, [10, 20])
    Image.new("L", (30, 5)).save(tmp_path / "thin.png")
    text = message(folder_patches(tmp_path, size=6))
    assert "thin.png" in text and "30x5" in text and "6x6" in text


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_unreadable_file_is_named(tmp_path, content):
    save_flat(tmp_path, [10, 20])
    (tmp_path / "broken.jpg").write_bytes(content)
    assert "broken.jpg" in message(folder_patches(tmp_path))


def test_truncated_file_is_named(tmp_path):
    save_flat(tmp_path, [10, 20])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:2_000])
    assert "half.png" in message(folder_patches(tmp_path))


def test_float_image_out_of_range_is_named(tmp_path):
    save_flat(tmp_path, [10, 20])
    Image.fromarray(np.full((12, 12), 7.5, np.float32)).save(tmp_path / "hot.tif")
    text = message(folder_patches(tmp_path))
    assert "hot.tif" in text and "[0, 1]" in text


def test_flat_images_cannot_be_whitened(tmp_path):
    save_flat(tmp_path, [10, 77, 201])
    assert "flat" in message(folder_patches(tmp_path, whitening="olshausen-field"))
    assert "zca_epsilon" in message(folder_patches(tmp_path, whitening="zca", zca_epsilon=0.0))


def test_flat_images_cannot_be_rescaled(tmp_path):
    save_flat(tmp_path, [10, 77, 201])
    assert "flat" in message(folder_patches(tmp_path, rescaling="ufldl"))


def test_unknown_names():
    assert "ufldl" in message(ImagePatches(rescaling="ufdl", **FEW))
    assert "olshausen-field" in message(ImagePatches(whitening="olshausen", **FEW))
