# SPDX-License-Identifier: Apache-2.0
"""The network from Python: `gan_mrcnn.load`, and what it finds in images.

    import gan_mrcnn

    model = gan_mrcnn.load('runs/glands')
    result = model('image.png')
    print(len(result), result.scores, result.boxes)

It is what `gan-mrcnn predict` does, without files.

Shapes: N objects, H and W height and width of the image in pixels.
"""

import collections
import numbers
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, Union

import numpy as np

from gan_mrcnn.data.readers import images
from gan_mrcnn.prediction import (
    exported,
    geojson,
    image_files,
    model_card,
    objects,
    slides,
    tiles,
    writing,
)
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.prediction import run as prediction_run
from gan_mrcnn.prediction import tta as tta_lib
from gan_mrcnn.utils import cli, paths, published
from gan_mrcnn.utils.errors import UserError

# What an image can be given as, and what messages call that.
Image = Union[str, os.PathLike, np.ndarray]
_IMAGES = 'paths or pixels (of Pillow: numpy.asarray(image.convert("RGB")))'
_MODELS = 'the folder of a run, an export, an ONNX file or published weights'


class Result:
    """The objects in one image, best first.

    `len(result)` is N. In a notebook it shows itself.

    Attributes:
      image: [H, W, 3] uint8, RGB.
      source: the path, or 'image 3' for the third array of a call.
      objects: N `objects.Object`, whose masks are kept in windows of their own: those of a slide's
        crop would be terabytes otherwise.
      card: of the model, `model_card.ModelCard`.
    """

    def __init__(self, found: image_files.Result, card: model_card.ModelCard):
        self._found = found
        self.image = found.pixels
        self.source = str(found.source.path)
        self.objects = found.objects
        self.card = card

    def __len__(self) -> int:
        return len(self.objects)

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f'<{self.source}, {width}x{height}: {self.counts() or "nothing"}>'

    def counts(self) -> str:
        """How many objects of each class there are, such as '30 gland, 1 debris'."""
        found = collections.Counter(one.class_id for one in self.objects)
        return ', '.join(f'{found[i]} {self.card.class_names[i - 1]}' for i in sorted(found))

    def at_least(self, score: float) -> 'Result':
        """The same without the objects below a score."""
        kept = [one for one in self.objects if one.score >= score]
        return Result(self._found._replace(objects=kept), self.card)

    @property
    def boxes(self) -> np.ndarray:
        """[N, 4] float64, [y1, x1, y2, x2] in pixels."""
        return np.array([one.box for one in self.objects], np.float64).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        """[N] float64, from 0 to 1."""
        return np.array([one.score for one in self.objects], np.float64)

    @property
    def class_ids(self) -> np.ndarray:
        """[N] int64, from 1 on."""
        return np.array([one.class_id for one in self.objects], np.int64)

    @property
    def class_names(self) -> list[str]:
        """N names."""
        return [self.card.class_names[one.class_id - 1] for one in self.objects]

    @property
    def masks(self) -> np.ndarray:
        """[N, H, W] bool, made anew each time; `rles` is smaller for large images."""
        height, width = self.image.shape[:2]
        whole = [one.cut((0, 0, height, width)) for one in self.objects]
        return np.array(whole, bool).reshape(-1, height, width)

    @property
    def rles(self) -> list[dict[str, Any]]:
        """N masks in COCO's run lengths, `{'size': [H, W], 'counts': str}`."""
        return [objects.encode(one, *self.image.shape[:2]) for one in self.objects]

    def draw(self) -> np.ndarray:
        """The image with outlines and scores, [H, W, 3] uint8, RGB."""
        return writing.draw(self._found)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """N annotations of COCO's format with a `score`, which are COCO results as well.

        `bbox` is [x, y, width, height] in pixels, `category_id` the data set's own,
        `segmentation` as in `rles`; their `id` goes from 1 on.
        """
        size = self.image.shape[:2]
        return [
            {'id': number, 'image_id': image_id, **writing.annotation(one, self.card, *size)}
            for number, one in enumerate(self.objects, start=1)
        ]

    def to_label_image(self) -> np.ndarray:
        """[H, W] uint16: 0 background, otherwise the object's place from 1 on; the best on top.

        Raises:
          UserError: there are more than 65,535 objects.
        """
        return writing.label_image(self.objects, *self.image.shape[:2])

    def to_geojson(self, micrometres_per_pixel: Optional[float] = None) -> dict[str, Any]:
        """A FeatureCollection that QuPath opens, see `geojson.feature`.

        Raises:
          UserError: `micrometres_per_pixel` is not a positive number.
        """
        size = micrometres_per_pixel
        if size is not None and not (isinstance(size, numbers.Real) and 0 < size < float('inf')):
            raise UserError(f'micrometres_per_pixel {size!r} is no positive number; give one')
        return geojson.collection(
            geojson.feature(one, name, micrometres_per_pixel)
            for one, name in zip(self.objects, self.class_names)
        )

    def to_dataframe(self):
        """A pandas.DataFrame with the columns of objects.csv, N rows.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError('pandas is not installed; pip install pandas') from error
        rows = writing.rows(self._found, self.card)
        return pandas.DataFrame(list(rows), columns=list(writing.COLUMNS))

    def _repr_png_(self) -> bytes:
        return images.as_png(self.draw())


class Model:
    """A trained network; `load` makes it. Call it with images.

    Attributes:
      card: `model_card.ModelCard`: class names, score threshold, sizes.
    """

    def __init__(self, predictor: predictor_lib.Predictor):
        self._predictor = predictor
        self.card = predictor.card

    def __call__(
        self,
        image: Union[Image, Iterable[Image]],
        score_threshold: Optional[float] = None,
        tile: Optional[tuple[int, int]] = None,
        overlap: Optional[int] = None,
        batch_size: int = 4,
    ) -> Union[Result, list[Result]]:
        """Finds the objects in an image, or in each of several.

        Args:
          image: a path, or pixels: [H, W, 3] uint8, RGB, of any size, or [H, W] in shades of grey;
            or an iterable of these.
          score_threshold: objects below it are dropped; None for the model's own.
          tile: height and width in pixels: larger images are predicted in tiles of this size.
            Take that of the training images.
          overlap: of neighbouring tiles, in pixels; None for a quarter of their shorter side.
          batch_size: images or tiles that the network sees at a time.

        Returns:
          A `Result`, or a list of them.

        Raises:
          UserError: an image cannot be read or has another shape or type; it is named.
        """
        if isinstance(image, (str, os.PathLike, np.ndarray)):
            return next(self.stream([image], score_threshold, tile, overlap, 1))
        return list(self.stream(image, score_threshold, tile, overlap, batch_size))

    def stream(
        self,
        several: Iterable[Image],
        score_threshold: Optional[float] = None,
        tile: Optional[tuple[int, int]] = None,
        overlap: Optional[int] = None,
        batch_size: int = 4,
    ) -> Iterator[Result]:
        """The same one after the other, with `batch_size` images in memory at a time."""
        if isinstance(several, (str, os.PathLike, Mapping)) or not isinstance(several, Iterable):
            raise UserError(f'{several!r:.100} is not several images; give a list of {_IMAGES}')
        if not isinstance(score_threshold, (numbers.Real, type(None))):
            raise UserError(f'score_threshold {score_threshold!r} is no number')
        cli.check_score(score_threshold)
        cli.check_positive(batch_size, 'batch_size')
        if tile is None and overlap is not None:
            raise UserError(f'overlap {overlap} is of tiles; give tile, too')
        overlap = 0 if tile is None else tiles.check(tile, overlap)
        return self._stream(several, score_threshold, tile, overlap, batch_size)

    def _stream(self, several, score_threshold, tile, overlap, batch_size):
        threshold = self.card.score_threshold if score_threshold is None else score_threshold
        problems: list[str] = []
        pictures = (_read(image, number) for number, image in enumerate(several, start=1))
        tile = None if tile is None else tuple(map(int, tile))
        for found in image_files.detect(
            pictures, self._predictor, threshold, batch_size, tile, overlap, problems
        ):
            if problems:
                break
            yield Result(found, self.card)
        if problems:
            raise UserError(problems[0])


def load(
    model: Union[str, pathlib.Path],
    checkpoint: str = 'best',
    data_dir: Optional[str] = None,
    tta: Optional[str] = None,
) -> Model:
    """Loads a trained network.

    Args:
      model: the folder of a run, of an export (`gan-mrcnn export`) or of published weights
        (`gan-mrcnn publish`), a file of published weights, or an address of one with its
        `#sha256=`.
      checkpoint: of a run: 'best' (by mask AP on the validation split; the last where there was
        none), 'last', or a path.
      data_dir: of a run: where its data set is, if it was moved.
      tta: 'flip' or 'all': every image is shown in two or in all eight orientations, and what is
        found is merged.

    Raises:
      UserError: there is no such thing, or it is damaged.
    """
    if tta is not None and tta not in tta_lib.ORIENTATIONS:
        raise UserError(f'tta {tta!r} is none of {", ".join(tta_lib.ORIENTATIONS)}')
    text, weights = str(model), None
    is_address = paths.is_address(text)
    path = pathlib.Path(text if is_address else paths.expand_home(text, 'load'))
    is_weights = path.suffix == published.SUFFIX or (path / published.WEIGHTS).is_file()
    if not is_address and (not path.exists() or path.is_file() and not _is_model(path)):
        what = 'is no model' if path.exists() else 'does not exist'
        raise UserError(f'{path} {what}; give {_MODELS}')
    if is_address or is_weights:
        weights = published.find(
            text if is_address else str(path),
            paths.expand_home(cli.default_cache_dir(), '--cache_dir'),
        )
    return Model(prediction_run.load(str(path), checkpoint, data_dir, weights, tta))


def _is_model(file):
    return file.suffix == published.SUFFIX or exported.is_onnx(str(file))


def _read(image, number):
    """An image as `image_files.detect` takes it."""
    name = f'image {number}'
    if isinstance(image, (str, os.PathLike)):
        return _read_file(os.fspath(image))
    if not isinstance(image, np.ndarray):
        raise UserError(f'{name} is of type {type(image).__name__}; give {_IMAGES}')
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not fits or not image.size:
        raise UserError(
            f'{name} is {image.dtype} {list(image.shape)}; give uint8, [H, W, 3] or [H, W]'
        )
    pixels = np.repeat(image[..., np.newaxis], 3, axis=2) if image.ndim == 2 else image
    return image_files.Source(pathlib.Path(name), name), images.DecodedImage(pixels, None)


def _read_file(text):
    path = pathlib.Path(text)
    if paths.is_address(text):
        raise UserError(f'{text} is an address; give a path of this machine')
    if path.is_dir():
        raise UserError(f'{path} is a folder; give the images in it')
    if slides.is_slide(path):
        raise UserError(f'{path} is a whole slide; gan-mrcnn predict reads it')
    return image_files.Source(path, path.stem), images.read_image(path)
