"""Nothing of ours runs code that data hold: no module that unpickles, no reader told to allow it."""

import ast
import glob
import os

import numpy as np
import pytest
from conftest import ROOT
from scipy.io import savemat

from scripts import create_datasets

FOLDERS = ('libml', 'ablation', 'scripts')
FILES = [path for folder in FOLDERS for path in glob.glob(os.path.join(ROOT, folder, '**/*.py'), recursive=True)]
FILES = sorted(set(FILES) - {os.path.join(ROOT, 'scripts/pytorch/update.py')})  # It reads no file.
MODULES = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal', 'yaml', 'torch'}
CALLS = {'eval', 'exec', 'compile', '__import__', 'unpack_archive', 'extractall', 'extract', 'load_model'}
READERS = {'numpy': 'load', 'np': 'load'}  # np.load unpickles where it is told to, so it is not used at all.


def imported(node):
    """Returns the top-level modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split('.')[0] for alias in node.names}
    return {node.module.split('.')[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def called(node):
    """Returns (object, name) of a call such as np.load(...); object '' for a plain name."""
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        return getattr(node.func.value, 'id', '?'), node.func.attr
    return '', getattr(node.func, 'id', '?')


def test_no_module_unpickles_or_executes_data():
    assert len(FILES) > 30
    for path in FILES:
        with open(path, encoding='utf-8') as file:
            nodes = list(ast.walk(ast.parse(file.read())))
        for node in nodes:
            where = '%s:%d' % (path, getattr(node, 'lineno', 0))
            assert not imported(node) & MODULES, where
            owner, name = called(node) or ('', '')
            assert (owner, name) not in READERS.items(), where
            assert name not in CALLS or owner == 're', where
            assert not (isinstance(node, ast.keyword) and node.arg == 'allow_pickle'), where


class Code:
    """What is pickled runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.mark.parametrize('kind', ['pickle', 'object array'])
def test_a_mat_file_that_holds_code_runs_none(tmp_path, monkeypatch, kind):
    import pickle

    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / 'train_32x32.mat')
    if kind == 'pickle':
        with open(path, 'wb') as file:
            pickle.dump(Code(), file)
    else:
        savemat(path, {'X': np.array([{'a': 'b'}], object), 'y': np.array([[1]])})
    with pytest.raises(ValueError, match='train_32x32'):
        list(create_datasets.read_svhn(path))
    assert not os.path.exists('executed')
