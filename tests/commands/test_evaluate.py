"""Where an export is evaluated when no folder is given."""

import pytest

from gan_mrcnn.commands import evaluate


@pytest.mark.parametrize('given', ['out/model', 'out/model/2', 'out/model/'])
def test_an_export_is_evaluated_beside_itself(given, tmp_path, monkeypatch):
    for version in ('1', '2'):
        folder = tmp_path / 'out' / 'model' / version
        folder.mkdir(parents=True)
        (folder / 'saved_model.pb').touch()
    monkeypatch.chdir(tmp_path)
    assert evaluate._beside(given) == str(tmp_path / 'out')
