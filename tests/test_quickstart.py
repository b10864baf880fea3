"""docs/quickstart: the page and the notebook are the same, and what they say runs."""

import os
import pathlib
import sys

import pytest

_REASON = "the extra 'docs' is not installed"
jupytext = pytest.importorskip('jupytext', reason=_REASON)
nbformat = pytest.importorskip('nbformat', reason=_REASON)

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE, _NOTEBOOK = _ROOT / 'docs/quickstart.md', _ROOT / 'docs/quickstart.ipynb'


def _cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_the_notebook_is_the_page_without_outputs():
    notebook = nbformat.read(_NOTEBOOK, as_version=4)
    assert _cells(notebook) == _cells(jupytext.read(_PAGE)), 'make notebook writes it anew'
    assert not any(cell.get('outputs') for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip('nbclient', reason=_REASON)
    pytest.importorskip('ipykernel', reason=_REASON)
    steps = os.environ.get('GAN_MRCNN_QUICKSTART_STEPS', '2')
    monkeypatch.setenv('GAN_MRCNN_QUICKSTART_STEPS', steps)
    folder = tmp_path / 'quickstart'
    monkeypatch.setenv('GAN_MRCNN_QUICKSTART', str(folder))
    monkeypatch.setenv('GAN_MRCNN_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PYTHONPATH', str(_ROOT))
    folders = [os.path.dirname(sys.executable), os.environ['PATH']]
    monkeypatch.setenv('PATH', os.pathsep.join(folders))
    notebook = nbformat.read(_NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=3600, resources={'metadata': {'path': str(tmp_path)}}
    )
    try:
        client.execute()
    finally:
        nbformat.write(notebook, tmp_path / 'executed.ipynb')
    # A command that fails is no error to a notebook.
    written = ('check.html', 'run/eval/test/results.json', 'served/model/1/saved_model.pb')
    assert not [name for name in written if not (folder / name).is_file()]
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
    assert 'as before: True' in outputs[-1].text
