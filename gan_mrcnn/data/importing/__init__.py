# SPDX-License-Identifier: Apache-2.0
"""Exports of annotation tools, made into a folder in COCO's format.

`source` is what a reader is given and what it hands back, `shapes` turns outlines and painted masks
into COCO's segmentations, `folder` writes. There is one reader for each tool. A tool that names the
parts of a data set otherwise, or an image by another rule, differs in its reader alone.
"""
