"""The notebook of examples/ runs from top to bottom, and is kept without outputs."""

import os

import pytest
from conftest import ROOT

nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
pytest.importorskip('ipykernel')

PATH = os.path.join(ROOT, 'examples', 'mixmatch_in_five_minutes.ipynb')


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    book = nbformat.read(PATH, 4)
    cells = [cell for cell in book.cells if cell.cell_type == 'code']
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    names = [line.split(' = ')[0] for line in cells[0].source.splitlines()]
    assert names == ['TRAIN_KIMG', 'FOLDER']
    cells[0].source = 'TRAIN_KIMG, FOLDER = 1, %r' % os.path.relpath(tmp_path, os.path.dirname(PATH))
    before = set(os.listdir(os.path.dirname(PATH)))
    nbclient.NotebookClient(book, resources=dict(metadata=dict(path=os.path.dirname(PATH)))).execute()
    assert set(os.listdir(os.path.dirname(PATH))) - {'__pycache__'} == before - {'__pycache__'}
    pictures = [output for cell in cells for output in cell.outputs if 'image/png' in output.get('data', {})]
    texts = [output.text for cell in cells for output in cell.outputs if output.output_type == 'stream']
    assert len(pictures) == 5 and 'test set of digits.1@20-100: 510 pictures' in ''.join(texts)
    for words in 'RUN=%s/digits.1@20-100' % tmp_path, '--data_dir=%s/data' % tmp_path:  # In the commands it prints.
        assert words in ''.join(texts)
    assert sorted(os.listdir(tmp_path)) == ['data', 'digits.1@20-100']
