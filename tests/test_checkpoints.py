"""Checkpoints: their names, what counts as damage, and what falling back leaves."""

import errno
import os
import pathlib
import shutil
import types

import fakes
import pytest
import tensorflow.compat.v1 as tf

from libml import utils
from libml.running import checkpoints

DATA = '.data-00000-of-00001'


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


@pytest.fixture(params=[True, False], ids=['noted', 'of published code'])
def ckpt(request, tmp_path):
    """The prefix of a checkpoint of one variable, with or without a note beside it."""
    v = tf.get_variable('v', [1000])
    saver = checkpoints.Checkpoints(str(tmp_path))
    with tf.Session() as session:
        session.run(v.initializer)
        saver.save(session, 64, 5, 'means')
    if not request.param:
        os.remove(saver.last + checkpoints.NOTE)
    return saver.last


def test_a_whole_checkpoint(ckpt):
    with checkpoints.Held(ckpt) as held:
        assert set(held.read()) == {'v'}


def test_a_checkpoint_too_large_for_a_copy_is_read_where_it_is(ckpt, monkeypatch):
    for free, copied in ((1000, False), (1 << 20, True)):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: types.SimpleNamespace(free=free))
        with checkpoints.Held(ckpt) as held:
            assert (held.path != ckpt) == copied


@pytest.mark.parametrize(
    'harm, ending',
    [(fakes.cut, DATA), (fakes.flip, DATA), (os.remove, DATA), (fakes.cut, '.index'), (fakes.empty, '.index')],
)
def test_a_damaged_checkpoint(harm, ending, ckpt):
    harm(ckpt + ending)
    with pytest.raises(checkpoints.Damaged, match='not a whole checkpoint'):
        checkpoints.Held(ckpt)


def flip(path, position):
    """Flips a bit of a file."""
    with open(path, 'r+b') as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize('ckpt', [True], indirect=True)
def test_a_note_tells_what_checksums_do_not(ckpt):
    """The index ends in some bytes that mean nothing to TensorFlow. A process that was killed left no SHA-256."""
    flip(ckpt + '.index', os.path.getsize(ckpt + '.index') - 20)
    with pytest.raises(checkpoints.Damaged, match='index is missing, or not as it was saved'):
        checkpoints.Held(ckpt)
    note = pathlib.Path(ckpt + checkpoints.NOTE)
    note.write_text('{"means": "means"}')
    checkpoints.Held(ckpt)


@pytest.mark.parametrize('ckpt', [True], indirect=True)
@pytest.mark.parametrize('older', [False, True])
def test_the_means_are_read_from_new_and_old_notes(ckpt, older):
    if older:
        pathlib.Path(ckpt + checkpoints.NOTE).write_text('"means"')
    saver = checkpoints.Checkpoints(os.path.dirname(ckpt))
    assert saver.read_means() is None
    with tf.Session() as session, checkpoints.Held(ckpt) as held:
        saver.restore(session, held)
    assert saver.read_means() == 'means'


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES])
def test_what_the_system_refuses_is_no_damage(number, ckpt, monkeypatch):
    open_file = os.open

    def fail(path, *args, **kwargs):
        if str(path).startswith(ckpt + '.data'):
            raise OSError(number, os.strerror(number), path)
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(os, 'open', fail)
    with pytest.raises(utils.Error, match='cannot be read .*' + os.strerror(number)) as raised:
        checkpoints.Held(ckpt)
    assert not isinstance(raised.value, checkpoints.Damaged)


def test_what_is_put_aside_overwrites_nothing(tmp_path):
    contents = set()
    for i in range(3):
        for ending in (DATA, '.index', '.note.json'):
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
