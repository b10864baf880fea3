# SPDX-License-Identifier: Apache-2.0
"""Boundary AP: how well outlines fit, where mask AP compares areas and hardly sees outlines.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation (2021). Of each
mask only the band inside its outline counts, as wide as 2% of the image's diagonal; the overlap
of two objects is the smaller of mask IoU and the IoU of their bands. Distances are Chebyshev's
(a square of pixels around each pixel), as in the authors' code.
"""

import cv2
import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Width of the band, as a share of the image's diagonal.
BAND = 0.02


def band_width(height: int, width: int, band: float = BAND) -> int:
    """Width of the band in pixels, at least one."""
    return max(1, int(round(band * float(np.hypot(height, width)))))


def boundary_band(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The pixels of a mask within `pixels` of one outside it; beyond the image is outside.

    Args:
      mask: uint8 [H, W], 0 and 1.
      pixels: width of the band.

    Returns:
      uint8 [H, W], 0 and 1.
    """
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    # OpenCV's own border counts as inside.
    inner = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - inner


def encode_band(rle: dict, band: float = BAND) -> dict:
    """Run lengths of the band of a mask given as run lengths, of the same size.

    Only the part of the image around the object is eroded.
    """
    height, width = rle['size']
    x, y, w, h = (int(value) for value in mask_api.toBbox(rle))
    mask = mask_api.decode(rle)
    if not w:
        return mask_api.encode(mask)
    window = (slice(y, y + h), slice(x, x + w))
    # Beyond its box an object has no pixels: the window's border is as good as the image's.
    pixels = band_width(height, width, band)
    mask[window] = boundary_band(np.ascontiguousarray(mask[window]), pixels)
    return mask_api.encode(mask)


class BoundaryEval(COCOeval):
    """COCOeval with boundary IoU for overlaps; sizes are those of the masks."""

    def __init__(self, ground_truth: COCO, predictions: COCO, band: float = BAND):
        """Takes what COCOeval takes.

        Args:
          ground_truth: annotations with masks.
          predictions: results with masks.
          band: width of the band as a share of the image's diagonal.
        """
        super().__init__(ground_truth, predictions, 'segm')
        self.band = band

    def _prepare(self) -> None:
        super()._prepare()
        for objects in (self._gts, self._dts):
            for annotations in objects.values():
                for annotation in annotations:
                    annotation['band'] = encode_band(annotation['segmentation'], self.band)

    def computeIoU(self, imgId, catId):  # noqa: N802, N803 (pycocotools' names)
        """Overlaps of one image and class, [results, annotations], results by falling score."""
        ious = super().computeIoU(imgId, catId)
        objects = self._gts[imgId, catId]
        predictions = self._dts[imgId, catId]
        if not objects or not predictions:
            return ious
        order = np.argsort([-one['score'] for one in predictions], kind='mergesort')
        predictions = [predictions[i] for i in order[: self.params.maxDets[-1]]]
        is_crowd = [int(one['iscrowd']) for one in objects]
        bands = mask_api.iou(
            [one['band'] for one in predictions], [one['band'] for one in objects], is_crowd
        )
        # A crowd has no outline of its own to compare with.
        return np.where(np.array(is_crowd, bool), ious, np.minimum(ious, bands))
