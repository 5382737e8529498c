"""Dictionary grids, on dictionaries whose every pixel is known."""

import numpy as np

from sae.report import images
from sae.report.images import DEAD_GREY, LINE, dictionary_grid


def tile(grid, i, size=2, across=2):
    top, left = (i // across) * (size + 1), (i % across) * (size + 1)
    return grid[top : top + size, left : left + size]


def test_each_row_has_a_symmetric_range_of_its_own():
    W_dec = np.array([[0, 1, -1, 0.5], [0, -0.01, 0.005, 0], [0, 0, 0, 0]], np.float32)
    grid = dictionary_grid(W_dec, (2, 2))
    assert grid.dtype == np.uint8 and grid.shape == (5, 5)
    np.testing.assert_array_equal(tile(grid, 0), [[128, 255], [1, 192]])
    np.testing.assert_array_equal(tile(grid, 1), [[128, 1], [192, 128]])
    np.testing.assert_array_equal(tile(grid, 2), 128)
    assert (tile(grid, 3) == LINE).all() and (grid[2] == LINE).all() and (grid[:, 2] == LINE).all()


def test_the_most_active_comes_first_and_the_dead_are_faded():
    W_dec = np.eye(4, dtype=np.float32)
    grid = dictionary_grid(W_dec, (2, 2), np.array([0.1, 0, 0.9, 0.2]))
    for place, latent in enumerate([2, 3, 0]):
        assert tile(grid, place).ravel().argmax() == latent and tile(grid, place).max() == 255
    faded = tile(grid, 3).ravel()
    assert faded.argmax() == 1 and faded[0] == DEAD_GREY and faded[1] < 255
    assert dictionary_grid(W_dec, (2, 2), np.array([0.1, 0, 0.9, 0.2]), most=1).ravel().argmax() == 2
    in_order = dictionary_grid(W_dec, (2, 2), dead=np.array([True, False, False, False]))
    assert tile(in_order, 0)[0, 1] == DEAD_GREY and [tile(in_order, i).ravel().argmax() for i in range(4)] == [
        *range(4)
    ]


def test_colours_scale_and_values_that_are_no_numbers():
    W_dec = np.zeros((1, 12), np.float32)
    W_dec[0, :3] = 1, -1, np.nan
    grid = dictionary_grid(W_dec, (2, 2, 3), scale=2)
    assert grid.shape == (4, 4, 3)
    np.testing.assert_array_equal(grid[1, 1], [255, 1, 128])
    np.testing.assert_array_equal(grid[0, 2], 128)


def test_latents_without_a_rate_come_last_and_equal_rates_keep_their_order():
    order = images.most_active_first(np.array([[0.5, np.nan, 0.5, 0.9], [0, 0, 0.1, 0]]))
    assert order.tolist() == [[3, 0, 2, 1], [2, 0, 1, 3]]


def test_a_sheet_has_gaps_beside_its_tiles_and_dead_tiles_stand_about_a_grey_of_their_own():
    rows = np.array([[1.0, -1], [1, -1], [1, -1]])
    tiles = images.directions(rows, (1, 2), np.array([False, True, False]), dead_grey=200)
    assert tiles.tolist() == [[[255, 1]], [[232, 168]], [[255, 1]]]
    sheet = images.sheet(tiles, 2, scale=2, gap=1, empty=9)
    assert sheet.shape == (6, 10)
    assert sheet[0].tolist() == [255, 255, 1, 1, 9, 232, 232, 168, 168, 9]
    assert (sheet[2] == 9).all() and (sheet[3:, 5:] == 9).all() and (sheet[:2] == sheet[0]).all()


def test_images_lie_in_rows_and_are_scaled_by_their_own_range():
    tiles = images.tiles(np.array([[-1.0, 0, 1, 0], [0, 0, 0, 9]]), (2, 2), np.array([-1.0, -9]), np.array([1.0, 9]))
    assert tiles.tolist() == [[[0, 128], [255, 128]], [[128, 128], [128, 255]]]
    sheet = images.sheet(np.stack([tiles[0], tiles[1], tiles[0]]), 2)
    assert sheet.shape == (4, 4) and (sheet[:2, 2:] == tiles[1]).all() and (sheet[2:, 2:] == 0).all()
