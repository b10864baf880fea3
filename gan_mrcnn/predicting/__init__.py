# SPDX-License-Identifier: Apache-2.0
"""What was found in pictures without ground truth: objects, tiles of large pictures, files."""
