# SPDX-License-Identifier: Apache-2.0
"""From the files of a data set to batches."""
