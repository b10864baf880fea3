"""Tissue is found on made slides of known tissue, and nothing on glass."""

import numpy as np
import pytest

from gan_mrcnn.prediction import tissue

PINK = (225, 160, 190)
MPP = tissue.MICROMETRES_PER_PIXEL


def noisy(pixels, seed=0):
    """With the grey and the coloured noise that a scanner and JPEG have."""
    rng = np.random.default_rng(seed)
    grey, coloured = rng.normal(0, 4, pixels.shape[:2]), rng.normal(0, 1.5, pixels.shape)
    return np.clip(pixels + grey[..., None] + coloured, 0, 255).astype(np.uint8)


def glass(height=200, width=300, brightness=243):
    return np.full((height, width, 3), brightness, float)


@pytest.mark.parametrize('brightness', [180, 243])
def test_tissue_on_glass_is_found_to_a_pixel_or_two(brightness):
    pixels, wanted = glass(brightness=brightness), np.zeros((200, 300), bool)
    wanted[40:150, 60:200] = True
    pixels[wanted] = PINK
    found = tissue.find(noisy(pixels), MPP)
    assert (found & wanted).sum() / (found | wanted).sum() > 0.96


def test_a_slide_of_glass_has_none_and_one_of_tissue_is_all_tissue():
    assert not tissue.find(noisy(glass()), MPP).any()
    full = np.broadcast_to(np.array(PINK, float), (200, 300, 3))
    assert tissue.find(noisy(full), MPP).mean() > 0.99


def test_black_beyond_the_glass_is_none():
    pixels = glass()
    pixels[:, :100] = 3
    pixels[50:100, 150:250] = PINK
    found = tissue.find(noisy(pixels), MPP)
    assert not found[:, :95].any() and found[55:95, 155:245].all()


def test_dust_is_left_out_and_gaps_are_closed():
    pixels = glass()
    pixels[10:12, 10:12] = (90, 60, 120)  # 16 x 16 micrometres.
    pixels[60:120, 60:120] = PINK
    pixels[80:83, 60:120] = 243  # A crack of 24 micrometres.
    found = tissue.find(pixels.astype(np.uint8), MPP)
    assert not found[:30, :30].any() and found[66:114, 66:114].all()


def test_a_window_is_asked_for_in_its_own_pixels():
    mask = np.zeros((10, 20), bool)
    mask[4, 7] = True  # Of a view of 100 x 200: rows 40 to 49, columns 70 to 79.
    inside = lambda *window: tissue.is_in(mask, window, 100, 200)  # noqa: E731
    assert inside(45, 75, 46, 76) and inside(0, 0, 41, 71) and inside(49, 79, 100, 200)
    assert not inside(0, 0, 40, 200) and not inside(0, 80, 100, 200) and not inside(50, 0, 100, 200)
    assert tissue.is_in(np.ones((1, 1), bool), (90, 150, 100, 200), 100, 200)
