# SPDX-License-Identifier: Apache-2.0
"""Text that users wrote: UTF-8, with a byte order mark or without."""

import pathlib

from gan_mrcnn.utils.errors import UserError


def read(path: pathlib.Path) -> str:
    """The text of a file.

    Raises:
      UserError: it is not in UTF-8.
      OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise not_utf_8(path, content, error) from error


def not_utf_8(path: pathlib.Path, content: bytes, error: UnicodeDecodeError) -> UserError:
    """What to say of a file whose `content` could not be decoded."""
    line = content.count(b'\n', 0, error.start) + 1
    return UserError(
        f'{path} is not in UTF-8 (line {line} has the byte 0x{content[error.start]:02x}); save it '
        'as UTF-8'
    )
