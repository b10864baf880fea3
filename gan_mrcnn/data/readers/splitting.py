# SPDX-License-Identifier: Apache-2.0
"""Which images are held out of training, where a data set has no splits of its own.

The choice is an order of hashes, not a generator's stream: it is the same on every machine, and a
image that is added does not move all the others to another side.
"""

import hashlib
import re
from collections.abc import Sequence

from gan_mrcnn.utils.errors import UserError

# Trained on, of all images, unless `--split` says otherwise: the paper's share for its phones.
DEFAULT_SHARE = 0.9


def hold_out_groups(groups: Sequence[str], share: float, seed: int) -> list[int]:
    """Holds whole groups out, so that no patient, scene or video is on both sides.

    Groups are taken in the order of their hash; each is held out while the images held out stay
    within the wanted number. Without groups, every image is given a group of its own.

    Args:
      groups: of each image.
      share: of all images, to be trained on.
      seed: another one gives another choice.

    Returns:
      Sorted indices of the images held out, at least one.

    Raises:
      UserError: there is one group only.
    """
    members = _members(groups)
    if len(members) < 2:
        raise UserError(
            f'all {len(groups)} images are of one group ({groups[0]!r}), so that nothing can be '
            'held out of training; give another --group_by or a validation file'
        )
    order = sorted(members, key=lambda group: _hash(group, seed))
    room = (1 - share) * len(groups)
    chosen: list[int] = []
    for group in order:
        if len(chosen) + len(members[group]) <= room + 1e-9:
            chosen += members[group]
    return sorted(chosen or members[min(order, key=lambda group: len(members[group]))])


def hold_out_of_each(
    names: Sequence[str], groups: Sequence[str], share: float, seed: int
) -> list[int]:
    """Holds at least one image of each group out (and leaves one to train on).

    Groups of a single image are put together, and count as one.

    Args:
      names: of each image, all different.
      groups: of each image.
      share: of each group's images, to be trained on.
      seed: another one gives another choice.

    Returns:
      Sorted indices of the images held out.
    """
    members = _members(groups)
    single = [i for indices in members.values() if len(indices) == 1 for i in indices]
    chosen = []
    for indices in [indices for indices in members.values() if len(indices) > 1] + [single]:
        if len(indices) > 1:
            order = sorted(indices, key=lambda i: _hash(names[i], seed))
            wanted = round((1 - share) * len(indices))
            chosen += order[: min(max(wanted, 1), len(indices) - 1)]
    return sorted(chosen)


def series_of(file_name: str) -> str:
    """The name without its last number: what images of one thing share.

    'iphone_6_012.jpg', 'Mate 8 (3).jpg' and 'pixel/4.jpg' are of 'iphone_6', 'Mate 8' and 'pixel'.
    """
    folder, _, name = file_name.replace('\\', '/').rpartition('/')
    stem = name.rsplit('.', 1)[0]
    series = re.sub(r'(^|[\s_.(-]+)\d+\)?$', '', stem)
    return '/'.join(part for part in (folder, series) if part)


def _members(groups):
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return members


def _hash(text, seed):
    return hashlib.sha256(f'{seed}:{text}'.encode()).hexdigest()
