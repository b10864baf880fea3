# SPDX-License-Identifier: Apache-2.0
"""Operations that TensorFlow does not have, one package each."""
