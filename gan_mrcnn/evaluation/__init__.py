# SPDX-License-Identifier: Apache-2.0
"""Scores a list of COCO results against COCO annotations; no model is needed here.

A file of predictions from any other system, in COCO's result format and at the images' own
sizes, can be scored by the same code that scores ours (the paper's Tables 1 to 6 are all COCO AP).
"""
