# SPDX-License-Identifier: Apache-2.0
"""GAN Mask R-CNN: the Model Garden's Mask R-CNN with adversarial losses on boxes and masks."""

import importlib

from gan_mrcnn import compat  # noqa: F401  (before anything imports TensorFlow)

__version__ = '0.2.0'
# What a user calls from Python. They come with TensorFlow, which takes seconds, so at first use.
_PLACES = {
    'load': 'gan_mrcnn.api',
    'Model': 'gan_mrcnn.api',
    'Result': 'gan_mrcnn.api',
    'UserError': 'gan_mrcnn.utils.errors',
}
__all__ = ['__version__', *_PLACES]


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f'module {__name__} has no attribute {name}')
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
