"""Dictionaries of image data as images: a tile for every decoder row."""

import math

import numpy as np

LINE = 255  # the grey between tiles
DEAD_CONTRAST, DEAD_GREY = 0.25, 190


def dictionary_grid(
    W_dec: np.ndarray,
    image_shape: tuple[int, ...],
    firing_rates: np.ndarray | None = None,
    *,
    dead: np.ndarray | None = None,
    most: int | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Decoder rows as tiles of one picture, uint8 [height, width], or [height, width, 3] for coloured data.

    W_dec [d_sae, d_in], image_shape (height, width) or (height, width, channels). Each tile has a range of its own,
    symmetric about 0: 0 is mid-grey (128), the row's largest absolute value is white (255) or black (1). With
    `firing_rates` [d_sae] the most active latent comes first, row by row; otherwise they keep their order. Latents
    that never fire, or are `dead` [d_sae] bool, are faded. `most` keeps the first tiles, `scale` repeats pixels.
    """
    rows, (height, width) = np.nan_to_num(np.asarray(W_dec, np.float32), posinf=0, neginf=0), image_shape[:2]
    if dead is None:
        dead = np.zeros(len(rows), bool) if firing_rates is None else np.asarray(firing_rates) == 0
    order = np.arange(len(rows)) if firing_rates is None else np.argsort(-np.asarray(firing_rates), kind="stable")
    order = order[:most]
    rows, dead = rows[order], np.asarray(dead)[order]

    largest = np.max(np.abs(rows), axis=1, keepdims=True)
    shades = 127 * rows / np.where(largest > 0, largest, 1)
    shades = np.where(dead[:, None], DEAD_GREY + DEAD_CONTRAST * shades, 128 + shades)
    tiles = np.round(shades).astype(np.uint8).reshape(len(rows), height, width, -1)
    if tiles.shape[-1] not in (1, 3):
        tiles = tiles.mean(axis=-1, keepdims=True).astype(np.uint8)
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)

    across = math.ceil(math.sqrt(len(rows)))
    down = math.ceil(len(rows) / across)
    _, height, width, channels = tiles.shape
    padded = np.full((down * across, height + 1, width + 1, channels), LINE, np.uint8)
    padded[: len(rows), :height, :width] = tiles
    grid = padded.reshape(down, across, height + 1, width + 1, channels).swapaxes(1, 2)
    grid = grid.reshape(down * (height + 1), across * (width + 1), channels)[:-1, :-1]
    return grid[..., 0] if channels == 1 else grid
