"""New files and folders: whole or not at all, never over another's, nothing left behind, nothing through a link."""

import errno
import itertools
import os
import pathlib

import pytest

from libml import files, utils


def no_links(*args):
    raise OSError(errno.EPERM, 'Operation not permitted')


def write(path):
    pathlib.Path(path).write_text('new')


def make_set(paths):
    """Creates files that belong together."""
    with files.creating(*paths) as parts:
        for part in parts:
            write(part)


@pytest.fixture(params=['hard links', 'no hard links'], autouse=True)
def links(request, monkeypatch):
    if request.param == 'no hard links':
        monkeypatch.setattr(os, 'link', no_links)


@pytest.mark.parametrize('make', [write, os.mkdir])
@pytest.mark.parametrize(
    'other', [write, lambda path: os.makedirs(path / 'kept'), lambda path: os.symlink('nowhere', path)]
)
def test_what_gets_the_name_meanwhile_is_kept(tmp_path, make, other):
    path = tmp_path / 'x'
    with pytest.raises(utils.Error, match='x exists already and is never overwritten'), files.creating(path) as part:
        make(part)
        other(path)
        before = os.lstat(path).st_ino
    assert os.listdir(tmp_path) == ['x'] and os.lstat(path).st_ino == before


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    os.symlink('pipe', tmp_path / 'link')
    for name in ('pipe', 'link'):
        with pytest.raises(utils.Error, match='is not replaced'):
            files.write_text(str(tmp_path / name), 'new')
    assert sorted(os.listdir(tmp_path)) == ['link', 'pipe'] and not (tmp_path / 'pipe').is_file()


def test_a_kill_while_a_folder_gets_its_name_leaves_none_of_that_name(tmp_path, monkeypatch):
    if not os.fork():
        monkeypatch.setattr(os, 'rename', lambda *paths: os._exit(9))
        with files.creating(tmp_path / 'x') as part:
            os.mkdir(part)
    os.wait()
    with files.creating(tmp_path / 'x') as part:
        os.mkdir(part)
    assert os.listdir(tmp_path) == ['x']


@pytest.mark.parametrize('taken', [None, 0, 1, 2])
def test_files_that_belong_together_come_together_or_not_at_all(tmp_path, taken):
    paths = [str(tmp_path / name) for name in 'abc']
    try:
        with files.creating(*paths) as parts:
            for part in parts:
                write(part)
            if taken is not None:
                pathlib.Path(paths[taken]).write_text('kept')
    except utils.Error:
        assert pathlib.Path(paths[taken]).read_text() == 'kept'
    assert sorted(os.listdir(tmp_path)) == (['a', 'b', 'c'] if taken is None else ['abc'[taken]])


@pytest.mark.parametrize('call', range(1, 10))
def test_a_set_whose_process_is_killed_is_whole_or_gone_at_the_next_command(tmp_path, monkeypatch, call):
    paths = [str(tmp_path / name) for name in 'abc']
    others = tmp_path / 'b.part-1', tmp_path / 'd'
    for path in others:
        write(path)
    if not os.fork():
        calls = itertools.count(1)
        for name in ('link', 'rename', 'remove'):
            original = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *paths, do=original: os._exit(9) if next(calls) == call else do(*paths)
            )
        make_set(paths)
        os._exit(0)
    os.wait()
    named = [name for name in 'abc' if (tmp_path / name).exists()]
    files.discard_left(*paths)
    left = named if len(named) == 3 or os.link == no_links else []  # Without links, they may be anybody's.
    assert sorted(os.listdir(tmp_path)) == sorted([*left, 'b.part-1', 'd'])
    if not left:
        make_set(paths)


def test_what_came_from_others_between_the_names_is_kept(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in 'abc']
    if not os.fork():
        monkeypatch.setattr(os, 'fsync', lambda file: os._exit(9))
        make_set(paths)
    os.wait()
    write(paths[1])
    with pytest.raises(utils.Error, match='b exists already'), files.creating(paths[0]), files.creating(*paths):
        pass
    assert os.listdir(tmp_path) == ['b']


@pytest.mark.parametrize('use', [files.creating, files.replacing])
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path, use):
    if not os.fork():
        with use(tmp_path / 'x') as part:
            write(part)
            os._exit(9)
    pid, _ = os.wait()
    (left,) = os.listdir(tmp_path)
    assert left.startswith('x.part-%d-' % pid)
    (tmp_path / 'victim').write_text('kept')
    tag = left.rsplit('-', 1)[1][:6]
    os.symlink('victim', tmp_path / ('x.part-%d-%s000000' % (pid, tag)))
    os.mkdir(tmp_path / ('x.part-%d-%s000001' % (pid, tag)))
    others = [
        'x.part-%d-%s000000' % (os.getppid(), tag),  # Of a process that runs.
        'x.part-%d-%s000000' % (pid, 'abcdef' if tag != 'abcdef' else '012345'),  # Of another machine.
        'x.part-%d-%s00' % (pid, tag),
        'x.part-mine',
        'yx.part-%d-%s000000' % (pid, tag),
    ]
    for name in others:
        write(tmp_path / name)
    with use(tmp_path / 'x') as part:
        write(part)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, 'victim', 'x'])
    assert (tmp_path / 'victim').read_text() == 'kept'


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(ValueError), files.making_folder(tmp_path / 'a' / 'b'):
        raise ValueError
    assert not (tmp_path / 'a' / 'b').exists()
    with pytest.raises(ValueError), files.making_folder(tmp_path):
        raise ValueError
    assert tmp_path.exists()


def test_an_error_gets_the_files_name_if_its_text_can_hold_one():
    for error, text in (OSError(errno.EIO, 'failed'), "[Errno 5] failed: 'x'"), (OSError('failed'), 'failed'):
        with pytest.raises(OSError) as found, files.naming('x'):
            raise error
        assert str(found.value) == text
