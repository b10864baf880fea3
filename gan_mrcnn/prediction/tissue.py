# SPDX-License-Identifier: Apache-2.0
"""Where the tissue is on a slide, at low resolution: most of a slide is glass.

Glass is grey, whatever its brightness; stains have a colour. The difference of a pixel's largest
and smallest channel is that colour without the noise that saturation has in dark pixels. Otsu's
threshold (A Threshold Selection Method from Gray-Level Histograms, 1979) parts the two, as CLAM (Lu
et al., 2021) does with saturation, within limits: on a slide that is all tissue or all glass, Otsu
would part one of them in two.
"""

import cv2
import numpy as np

# At what resolution tissue is looked for, in micrometres per pixel.
MICROMETRES_PER_PIXEL = 8.0
# Limits of the threshold, of 255. JPEG gives grey a colour of some units; of haematoxylin and eosin
# the palest has twice the upper limit.
LOWEST, HIGHEST = 8, 24
# Gaps up to this are closed, in micrometres.
GAP = 40.0


def find(pixels: np.ndarray, micrometres_per_pixel: float) -> np.ndarray:
    """Where tissue is, [h, w] bool.

    Args:
      pixels: [h, w, 3] uint8 RGB, the slide.
      micrometres_per_pixel: of `pixels`.
    """
    # The median takes away what is smaller than five pixels: dust.
    colour = cv2.medianBlur(pixels.max(2) - pixels.min(2), 3)
    found, _ = cv2.threshold(colour, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = (colour > np.clip(found, LOWEST, HIGHEST)).astype(np.uint8)
    # The background beyond the border is closed against, too.
    radius = max(1, round(GAP / 2 / micrometres_per_pixel))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    padded = np.pad(mask, radius)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    return closed[radius:-radius, radius:-radius].astype(bool)


def is_in(mask: np.ndarray, window: tuple[int, int, int, int], height: int, width: int) -> bool:
    """Whether a window of the slide shows tissue.

    Args:
      mask: [h, w] bool, of the slide.
      window: y1, x1, y2, x2 in an image of the slide.
      height: of that image, in pixels.
      width: of that image, in pixels.
    """
    y1, x1, y2, x2 = window
    down, right = mask.shape[0] / height, mask.shape[1] / width
    rows = slice(int(y1 * down), int(np.ceil(y2 * down)))
    return bool(mask[rows, int(x1 * right) : int(np.ceil(x2 * right))].any())
