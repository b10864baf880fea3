# SPDX-License-Identifier: Apache-2.0
"""Operations that TensorFlow does not have, one package each."""

from gan_mrcnn import compat  # noqa: F401  (before anything imports TensorFlow)
