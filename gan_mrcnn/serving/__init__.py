# SPDX-License-Identifier: Apache-2.0
"""From checkpoint to server: export for TF Serving, and a client.

`client` runs without TensorFlow where it speaks REST; nothing here may import it at the top.
"""
