# SPDX-License-Identifier: Apache-2.0
"""MkDocs: the files of the repository's root become pages of the site, with links from there.

README.md is the first page. Its links go through docs/, which is the root of the site.
"""

import pathlib

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# By the name in the site.
_FILES = {
    'index.md': 'README.md',
    'CHANGELOG.md': 'CHANGELOG.md',
    'CONTRIBUTING.md': 'CONTRIBUTING.md',
    'CITATION.cff': 'CITATION.cff',
    'LICENSE': 'LICENSE',
}


def on_files(files, config):
    for name, source in _FILES.items():
        text = (_ROOT / source).read_text(encoding='utf-8').replace('](docs/', '](')
        files.append(File.generated(config, name, content=text))
    return files
