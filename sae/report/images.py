"""Rows of numbers as images of uint8 pixels: a tile for each row, and sheets of tiles side by side.

A tile is [height, width], or [height, width, 3] for coloured data; `image_shape` is (height, width) or
(height, width, channels). Channels other than one or three are averaged.
"""

import math
from collections.abc import Sequence

import numpy as np

LINE = 255  # the grey between the tiles of a grid
DEAD_CONTRAST, DEAD_GREY = 0.25, 190  # a faded tile: its contrast, and its grey for 0


def most_active_first(firing_rates: np.ndarray) -> np.ndarray:
    """Firing rates [..., d_sae] -> numbers of the latents by falling rate; equal rates keep their order, NaN is 0."""
    return np.argsort(-np.nan_to_num(firing_rates), axis=-1, kind="stable")


def tiles(rows: np.ndarray, image_shape: Sequence[int], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Rows [n, d_in] as tiles [n, height, width(, 3)]; low and high [n] are black (0) and white (255)."""
    span = np.maximum(high - low, 1e-12)[:, None]
    return _tiles(255 * np.clip((rows - low[:, None]) / span, 0, 1), image_shape)


def directions(
    rows: np.ndarray, image_shape: Sequence[int], dead: np.ndarray | None = None, dead_grey: int = DEAD_GREY
) -> np.ndarray:
    """Decoder rows [n, d_in] as tiles [n, height, width(, 3)], each with a range of its own, symmetric about 0.

    0 is mid-grey (128), the row's largest absolute value is white (255) or black (1). Rows that are `dead` [n] bool
    are faded: their 0 is `dead_grey`, with a quarter of the contrast. Values that are not finite are shown as 0.
    """
    rows = np.nan_to_num(np.asarray(rows, np.float32), posinf=0, neginf=0)
    largest = np.max(np.abs(rows), axis=1, keepdims=True)
    shades = 127 * rows / np.where(largest > 0, largest, 1)
    faded = np.zeros(len(rows), bool) if dead is None else np.asarray(dead)
    return _tiles(np.where(faded[:, None], dead_grey + DEAD_CONTRAST * shades, 128 + shades), image_shape)


def sheet(tiles: np.ndarray, columns: int, *, scale: int = 1, gap: int = 0, empty: int = 0) -> np.ndarray:
    """Tiles [n, height, width(, 3)] as one picture, so many columns in a row.

    `scale` repeats each pixel. `gap` pixels stand to the right of each tile and below it; these, and the places after
    the last tile, have the grey `empty`.
    """
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, *channels = tiles.shape
    down = math.ceil(n / columns)
    padded = np.full((down * columns, height + gap, width + gap, *channels), empty, np.uint8)
    padded[:n, :height, :width] = tiles
    grid = padded.reshape(down, columns, height + gap, width + gap, *channels).swapaxes(1, 2)
    return grid.reshape(down * (height + gap), columns * (width + gap), *channels)


def dictionary_grid(
    W_dec: np.ndarray,
    image_shape: Sequence[int],
    firing_rates: np.ndarray | None = None,
    *,
    dead: np.ndarray | None = None,
    most: int | None = None,
    scale: int = 1,
) -> np.ndarray:
    """All decoder rows W_dec [d_sae, d_in] as one nearly square picture of `directions`, with lines between them.

    With `firing_rates` [d_sae] the most active latent comes first, row by row; without, latents keep their order.
    Latents that never fire, or are `dead` [d_sae] bool, are faded. `most` keeps the first tiles only, `scale` repeats
    each pixel.
    """
    order = np.arange(len(W_dec)) if firing_rates is None else most_active_first(np.asarray(firing_rates))
    if dead is None and firing_rates is not None:
        dead = np.asarray(firing_rates) == 0
    order = order[:most]
    shown = directions(np.asarray(W_dec)[order], image_shape, None if dead is None else np.asarray(dead)[order])
    return sheet(shown, math.ceil(math.sqrt(len(shown))), scale=scale, gap=1, empty=LINE)[:-1, :-1]


def _tiles(shades: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Shades [n, d_in] from 0 to 255 -> tiles [n, height, width(, 3)]."""
    images = shades.reshape(-1, *image_shape)
    if images.ndim == 4 and images.shape[3] != 3:
        images = images.mean(axis=3)
    return images.round().astype(np.uint8)
