"""Checkpoints: their names, what counts as damage, and what falling back leaves."""

import errno
import os
import shutil
import types

import pytest
import tensorflow.compat.v1 as tf

from libml import utils
from libml.running import checkpoints


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / 'missing'):
        assert checkpoints.find(str(folder)) == []
        assert utils.find_latest_checkpoint(str(folder)) is None
        assert utils.get_latest_global_step(str(folder)) == 0
    touch(tmp_path, 'checkpoint', 'model.ckpt-0000000064.data-00000-of-00001', 'model.ckpt-x.index')
    touch(tmp_path, 'model.ckpt-0000000128.index.tempstate1', 'model.ckpt-0000000128.meta', 'a-model.ckpt-5.index')
    assert utils.find_latest_checkpoint(str(tmp_path)) is None


def test_checkpoints_in_the_order_of_their_steps(tmp_path):
    steps = [64, 1 << 20, 65536, 12345678901, 999]
    touch(tmp_path, *('model.ckpt-%010d.index' % step for step in steps), 'model.ckpt-5000.index')
    expected = [str(tmp_path / ('model.ckpt-%010d' % step)) for step in sorted(steps)]
    expected.insert(2, str(tmp_path / 'model.ckpt-5000'))
    assert checkpoints.find(str(tmp_path)) == expected
    assert utils.find_latest_checkpoint(str(tmp_path)) == expected[-1]
    assert utils.get_latest_global_step(str(tmp_path)) == 12345678901
    assert [checkpoints.step(path) for path in expected] == sorted([*steps, 5000])


def some_checkpoint(folder):
    """Saves a variable; returns the path prefix and the data file."""
    v = tf.get_variable('v', [1000])
    with tf.Session() as session:
        session.run(v.initializer)
        ckpt = tf.train.Saver().save(session, str(folder / 'model.ckpt-0000000064'), write_meta_graph=False)
    return ckpt, ckpt + '.data-00000-of-00001'


def test_a_whole_checkpoint(tmp_path):
    checkpoints.Held(some_checkpoint(tmp_path)[0])


def test_a_checkpoint_too_large_for_a_copy_is_read_where_it_is(tmp_path, monkeypatch):
    ckpt, file = some_checkpoint(tmp_path)
    os.truncate(file, 1 << 20)  # Holds nothing more: what is beyond the variables is no damage.
    for free, copied in ((1 << 19, False), (1 << 21, True)):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: types.SimpleNamespace(free=free))
        with checkpoints.Held(ckpt) as held:
            assert (held.path != ckpt) == copied


@pytest.mark.parametrize('damage', ['cut', 'flip', 'no data', 'cut index'])
def test_a_damaged_checkpoint(damage, tmp_path):
    ckpt, data = some_checkpoint(tmp_path)
    if damage == 'cut':
        os.truncate(data, os.path.getsize(data) // 2)
    elif damage == 'flip':
        with open(data, 'r+b') as file:
            file.seek(100)
            byte = file.read(1)[0]
            file.seek(100)
            file.write(bytes([byte ^ 1]))
    elif damage == 'no data':
        os.remove(data)
    else:
        os.truncate(ckpt + '.index', 20)
    with pytest.raises(checkpoints.Damaged, match='not a whole checkpoint'):
        checkpoints.Held(ckpt)


@pytest.mark.parametrize(
    'words', ['Stale file handle', 'Input/output error', 'Too many open files', 'Permission denied']
)
def test_what_the_system_refuses_is_no_damage(words, tmp_path, monkeypatch):
    ckpt, _ = some_checkpoint(tmp_path)

    def fail(path):
        raise tf.errors.OpError(None, None, 'the file is corrupt? %s.index; %s' % (path, words), 0)

    monkeypatch.setattr(tf.train, 'load_checkpoint', fail)
    with pytest.raises(utils.Error, match='cannot be read') as raised:
        checkpoints.Held(ckpt)
    assert not isinstance(raised.value, checkpoints.Damaged)


def test_what_is_put_aside_overwrites_nothing(tmp_path):
    contents = set()
    for i in range(3):
        for ending in ('.data-00000-of-00001', '.index', '.note.json'):
            (tmp_path / ('model.ckpt-0000000064' + ending)).write_text('%d%s' % (i, ending))
            contents.add('%d%s' % (i, ending))
        checkpoints.put_aside(str(tmp_path / 'model.ckpt-0000000064'))
    assert checkpoints.find(str(tmp_path)) == []
    assert {path.read_text() for path in tmp_path.iterdir()} == contents


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), folder)

    monkeypatch.setattr(os, 'listdir', fail)
    with pytest.raises(OSError, match=str(tmp_path)):
        checkpoints.find(str(tmp_path))
