# SPDX-License-Identifier: Apache-2.0
"""From checkpoint to server: export for TF Serving, its client, and batch prediction.

`client` runs without TensorFlow where it speaks REST; nothing here may import it at the top.
"""
