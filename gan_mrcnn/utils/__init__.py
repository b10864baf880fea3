# SPDX-License-Identifier: Apache-2.0
"""What every other part may use, and what uses none of them."""
