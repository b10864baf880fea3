# SPDX-License-Identifier: Apache-2.0
"""Frame, style and building blocks that all HTML pages share, and what renders them."""
