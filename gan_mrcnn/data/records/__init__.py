# SPDX-License-Identifier: Apache-2.0
"""Any data set as cached TFRecords."""
