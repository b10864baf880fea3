# SPDX-License-Identifier: Apache-2.0
"""Checks of a data set before training."""
