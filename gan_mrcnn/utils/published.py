# SPDX-License-Identifier: Apache-2.0
"""Where published weights are: a folder, a file or an address becomes a checked file of this disk.

Every file that `gan-mrcnn publish` writes has its SHA-256 in SHA256SUMS beside it. An address has
the sum behind #sha256=, so that what is read is what the publisher wrote, from any server.
"""

import hashlib
import os
import pathlib
import re

from gan_mrcnn.utils import disk, files, paths
from gan_mrcnn.utils.errors import UserError

WEIGHTS, SUMS, SUFFIX = 'model.safetensors', 'SHA256SUMS', '.safetensors'
_SCHEMES = ('http', 'https', 'file')
_FRAGMENT = re.compile('sha256=([0-9a-f]{64})')
_LINE = re.compile(r'([0-9a-f]{64}) [ *]([^/\\]+)')
_TIMEOUT_SECONDS = 30
_CHUNK = 1 << 20
# A ResNet-101 with all heads in float32 is 260 MB; a server may send without an end.
_MOST_BYTES = 1 << 31


def find(source: str, cache_dir: str) -> str:
    """Path of the checked weights.

    Args:
      source: a folder that `gan-mrcnn publish` wrote, all of whose files are checked; a file of
        weights, checked where SHA256SUMS beside it lists its name; or http://, https:// or file://
        with #sha256= and the sum, which is read once and kept.
      cache_dir: addresses are kept in its folder `weights`.

    Raises:
      UserError: something is missing, cannot be read, or has another sum.
    """
    if paths.is_address(source):
        return _download(source, cache_dir)
    path = pathlib.Path(source)
    if path.is_dir():
        sums = _read_sums(path)
        if WEIGHTS not in sums:
            raise UserError(
                f'--weights {source} has no {SUMS} that lists {WEIGHTS}; give a folder that '
                'gan-mrcnn publish wrote, or a file'
            )
        for name, wanted in sums.items():
            _check(path / name, wanted)
        return str(path / WEIGHTS)
    if not path.is_file() or path.suffix != SUFFIX:
        raise UserError(
            f'--weights {source} is neither a folder nor a file *{SUFFIX}; give what gan-mrcnn '
            'publish wrote, or an address'
        )
    wanted = _read_sums(path.parent).get(path.name)
    if wanted:
        _check(path, wanted)
    return source


def _read_sums(folder: pathlib.Path) -> dict[str, str]:
    """Sums by file name, empty without such a file."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}); get it again') from error
    matches = [_LINE.fullmatch(line) for line in lines]
    if not all(matches):
        raise UserError(f'{path} is not a list of sums as sha256sum writes it; get it again')
    return {match.group(2): match.group(1) for match in matches if match}


def _check(path: pathlib.Path, wanted: str) -> None:
    try:
        found = files.sha256(path)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); get it again') from error
    if found != wanted:
        raise UserError(f'{path} is damaged: its SHA-256 is not that of {SUMS}; get it again')


def _download(source: str, cache_dir: str) -> str:
    """The file of an address, from the cache where it is there and whole."""
    address, _, fragment = source.partition('#')
    match = _FRAGMENT.fullmatch(fragment)
    if address.partition('://')[0].lower() not in _SCHEMES:
        raise UserError(
            f'--weights {source} is none of {", ".join(_SCHEMES)}; give such an address'
        )
    if not match:
        raise UserError(
            f'--weights {source} has no #sha256= with 64 hexadecimal digits; add the sum of the '
            f'file, which {SUMS} beside it has'
        )
    wanted = match.group(1)
    path = pathlib.Path(paths.expand_home(cache_dir, '--cache_dir'), 'weights', wanted, WEIGHTS)
    if path.is_file() and files.sha256(path) == wanted:
        return str(path)
    disk.check_folder(path.parent, '--cache_dir')
    print(f'reading {address}', flush=True)
    with disk.errors_named(f'--cache_dir {cache_dir}'), files.named_when_whole(path) as temporary:
        if _copy(address, temporary) != wanted:
            raise UserError(
                f'--weights {address} has another SHA-256 than #sha256= says; compare the sum with '
                'that of the publisher'
            )
    return str(path)


def _copy(address: str, path: os.PathLike) -> str:
    """Writes what the address gives; the sum of it."""
    digest, size = hashlib.sha256(), 0
    with open(path, 'wb') as file:
        for chunk in _chunks(address):
            size += len(chunk)
            if size > _MOST_BYTES:
                raise UserError(f'--weights {address} is larger than {_MOST_BYTES} bytes')
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _chunks(address: str):
    """What the address gives, part by part; disk errors of the writer do not pass through here."""
    # Slow to import, and this module is among those that --help waits for.
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:
            while chunk := response.read(_CHUNK):
                yield chunk
    # OSError: urllib's own errors are such, and those of sockets.
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = ' '.join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f'--weights {address} cannot be read ({reason}); check address and network, or give a '
            'file'
        ) from error
