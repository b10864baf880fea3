# SPDX-License-Identifier: Apache-2.0
"""Figures of predictions against ground truth; knows neither networks nor data sets."""
