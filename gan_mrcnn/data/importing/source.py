# SPDX-License-Identifier: Apache-2.0
"""What the reader of an export is given, what it hands back, and where it notes what it leaves out.

Names in an export are those of another machine. They are resolved below the folder that the user
gave, and never lead out of it, so that a file from elsewhere cannot have other files copied.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from gan_mrcnn.data.importing import shapes
from gan_mrcnn.data.importing.shapes import Unusable
from gan_mrcnn.data.readers import images, names
from gan_mrcnn.utils import cli, files
from gan_mrcnn.utils.coco_annotations import short
from gan_mrcnn.utils.errors import UserError

_SPLITS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
    **dict.fromkeys(('test', 'testing'), 'test'),
}


@dataclasses.dataclass(frozen=True)
class Object:
    """An annotated object.

    label: its class; None where it has none.
    pieces: what it covers, in pixels.
    place: which one it is, for messages.
    is_crowd: whether it is a group of objects (COCO's `iscrowd`).
    """

    label: Optional[str]
    pieces: shapes.Pieces
    place: str
    is_crowd: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of the export.

    path: of the file; None where `encoded` is one.
    objects: in the order of the export.
    place: where it is described, for messages.
    split: 'train', 'val' or 'test'; '' where the export says nothing.
    size: (width, height) that its annotations are for; None where the export has none.
    in_shares: whether coordinates are shares of width and height, not pixels.
    must_be_upright: whether an image that EXIF turns is refused, because the tool does not say
      which way up it was annotated.
    encoded: the file itself, where the export has it inside.
    name: in the folder to be written; '' for that of the file.
    """

    path: Optional[pathlib.Path]
    objects: Sequence[Object]
    place: str
    split: str = ''
    size: Optional[tuple[int, int]] = None
    in_shares: bool = False
    must_be_upright: bool = False
    encoded: Optional[bytes] = None
    name: str = ''


@dataclasses.dataclass(frozen=True)
class Export:
    """What a reader found: images, and the classes that the project has, used or not."""

    pictures: Sequence[Picture]
    classes: Sequence[str] = ()


@dataclasses.dataclass
class Source:
    """An export to be read.

    path: the file or folder that the user gave.
    images: the folder where images are searched.
    boxes_are_objects: whether a rectangle is an outline.
    class_attribute: the attribute that names the class, for VIA.
    skip_bad: whether an image that cannot be used is skipped.
    skip_bad_annotations: whether an annotation that cannot be used is skipped.
    left_out: how many of each kind are not imported, by the kind's name in plural.
    attributes: how many values of each attribute are not imported.
    skipped_images, skipped_annotations: how many.
    """

    path: pathlib.Path
    images: pathlib.Path
    boxes_are_objects: bool = False
    class_attribute: Optional[str] = None
    skip_bad: bool = False
    skip_bad_annotations: bool = False
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    attributes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    skipped_images: int = 0
    skipped_annotations: int = 0

    @contextlib.contextmanager
    def annotation(self, place: str) -> Iterator[None]:
        """For the code that reads one annotation: what to do where it cannot be used."""
        try:
            yield
        except Unusable as error:
            line = f'{place}: {error}'
            if not self.skip_bad_annotations:
                raise UserError(f'{line}; --skip_bad_annotations skips it alone') from error
            self.skipped_annotations += 1
            print(cli.one_line(f'skipped: {line}'), flush=True)

    @contextlib.contextmanager
    def image(self, place: str) -> Iterator[None]:
        """The same for an image, whose file or one of whose annotations cannot be used."""
        try:
            yield
        except (Unusable, UserError) as error:
            line = f'{place}: {error}' if isinstance(error, Unusable) else str(error)
            if not self.skip_bad:
                raise UserError(f'{line}; --skip_bad skips such images') from error
            self.skipped_images += 1
            print(cli.one_line(f'skipped: {line}'), flush=True)

    def files(self, *suffixes: str) -> list[pathlib.Path]:
        """The file that was given, or all in the folder that was; `suffixes` in any case.

        Raises:
          UserError: there is none.
        """
        if self.path.is_file():
            return [self.path]
        found = [path for path in names.walk(self.path) if path.suffix.lower() in suffixes]
        if not found:
            raise UserError(f'{self.path} has no file that ends in {" or ".join(suffixes)}')
        return found

    def one_file(self, *suffixes: str) -> pathlib.Path:
        """The file that was given, or the only one in the folder that was.

        Raises:
          UserError: there is none, or there are several.
        """
        found = self.files(*suffixes)
        if len(found) > 1:
            listed = ', '.join(path.relative_to(self.path).as_posix() for path in found[:3])
            raise UserError(
                f'{self.path} has {len(found)} files that end in {" or ".join(suffixes)} '
                f'({listed}); give the one to import, and the folder of the images by --images'
            )
        return found[0]

    def find(self, *wanted: str, num_bytes: Optional[int] = None) -> pathlib.Path:
        """The image that a name means.

        Args:
          *wanted: the name, and what it is called otherwise, the best first; with the slashes of
            any system. In the folder of images, in `images` there, or nearly so (`names.Finder`).
          num_bytes: of the file, where the export has it: it tells files of one name apart.

        Raises:
          Unusable: there is none, or several.
        """
        for name in wanted:
            for root in (self.images, self.images / 'images'):
                path = inside(root, name)
                if path is not None and path.is_file():
                    return path
        alike: list[pathlib.Path] = []
        for name in wanted:
            meant, similar = self._finder.find(name, ())
            if len(meant) != 1 and num_bytes is not None:
                meant = [path for path in similar if path.stat().st_size == num_bytes]
            if len(meant) == 1:
                return meant[0]
            alike += similar
        hint = f'; did you mean {" or ".join(map(str, alike[:3]))}?' if alike else ''
        raise Unusable(f'its image {short(wanted[0])} is not in {self.images}{hint}')

    @functools.cached_property
    def _finder(self) -> names.Finder:
        folders = (self.images, self.images / 'images')
        return names.Finder([path for path in folders if path.is_dir()], images.IMAGE_SUFFIXES)

    def count_other_images(self, pictures: Sequence[Picture]) -> None:
        """Counts images in the folder that was given which have no file of annotations."""
        if self.path.is_dir():
            used = {picture.path for picture in pictures}
            found = [
                x for x in names.walk(self.images) if x.suffix.lower() in images.IMAGE_SUFFIXES
            ]
            self.left_out['images without annotations'] += len(set(found) - used)

    def relative(self, path: pathlib.Path) -> str:
        """`path` from the folder that was given, or its name alone; for names of images beside."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return path.relative_to(folder).as_posix() if folder in path.parents else path.name


def inside(root: pathlib.Path, name: str) -> Optional[pathlib.Path]:
    """The path of `name` in `root`, None where it would lead out; links are not followed."""
    path = os.path.normpath(root / name.replace('\\', '/'))
    top = os.path.abspath(root)
    is_inside = os.path.commonpath([os.path.abspath(path), top]) == top
    return pathlib.Path(path) if is_inside else None


def split_of(name: str) -> str:
    """'train', 'val' or 'test' for what tools call these; '' for other names."""
    return _SPLITS.get(name.lower(), '')


def load_json(path: pathlib.Path, tool: str) -> Any:
    """What a file of `tool` holds; raises UserError where it is not JSON."""
    return files.load_json(path, f'what {tool} wrote')


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """`value`, an object of JSON.

    Raises:
      Unusable: it is none.
    """
    if not isinstance(value, dict):
        raise Unusable(f'has {short(value)} as its {what}; an object is wanted')
    return value


def label_of(value: Any) -> Optional[str]:
    """A class's name; None for '' and null.

    Raises:
      Unusable: it is no text.
    """
    if value is not None and not isinstance(value, str):
        raise Unusable(f'has the class {short(value)}; a name is wanted')
    return (value or '').strip() or None
