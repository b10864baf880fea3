# SPDX-License-Identifier: Apache-2.0
"""HTML pages of one evaluation and of several."""
