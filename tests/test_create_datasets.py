"""Datasets from archives in each published layout, downloads, what is refused; nothing half-written stays."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import os
import shutil
import signal
import tarfile
import threading
import time

import fakes
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import assert_one_line_error, command, first_is_fast, place, tree
from forked import before
from scipy.io import savemat

from libml import data_pair, records, utils
from libml.data_pair import DATASETS
from libml.family import Family
from libml.intake import archives, splits
from libml.published import FAMILIES, PUBLISHED, Archive
from scripts import create_datasets, create_split


@pytest.fixture
def install(tmp_path):
    """Installs datasets from the archives in tmp_path/source into tmp_path/data."""
    (tmp_path / 'source').mkdir()

    def install(*names, **given):
        places = dict(data_dir=str(tmp_path / 'data'), source=str(tmp_path / 'source'))
        create_datasets.create(names, **{**places, 'verify': False, **given})

    install.source, install.data = str(tmp_path / 'source'), str(tmp_path / 'data')
    return install


def assert_records(folder, name, sets):
    """Asserts that the records of a dataset hold the {part: (images, labels)}."""
    for part, (images, labels) in sets.items():
        path = data_pair.locate_records(folder, name, part)
        found = records.read(path, unlabeled=True)
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], labels)


def assert_nothing_installed(folder):
    assert not os.path.exists(folder)


# --- Every layout, pixel by pixel ---


def split(folder, name, seed, size):
    create_split.make(name, size=size, seed=seed, data_dir=folder)
    return DATASETS['%s.%d@%d-2' % (name, seed, size)](folder)


def assert_split(dataset, images, labels):
    """Asserts that the three training sets share out the images with their labels."""
    sets = [dataset.sets[part] for part in ('labeled', 'valid', 'unlabeled')]
    pixels = np.concatenate([part.gather(np.arange(len(part))) for part in sets])
    found = sorted(
        (image.tobytes(), label)
        for image, label in zip(pixels, np.concatenate([part.labels for part in sets]), strict=True)
    )
    assert found == sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'svhn'])
def test_records_hold_what_the_archive_holds(install, name):
    """Of cifar100 they hold the fine labels; those of svhn count from 0."""
    sets = getattr(fakes, name)(install.source)
    install(name)
    assert_records(install.data, name, sets)


def test_svhn_serves_svhn_noextra_which_needs_no_extra(install, tmp_path):
    sets = fakes.svhn(install.source, n=30)
    os.rename(install.source + '/extra_32x32.mat', tmp_path / 'extra')
    install('svhn_noextra')
    with pytest.raises(utils.Error, match=r'extra_32x32.mat is missing: get it from http'):
        install('svhn')
    os.rename(tmp_path / 'extra', install.source + '/extra_32x32.mat')
    assert_split(split(install.data, 'svhn_noextra', 1, 20), *sets['train'])
    install('svhn')
    assert_records(install.data, 'svhn_noextra', {'test': sets['test']})
    both = [np.concatenate(pair) for pair in zip(sets['train'], sets['extra'], strict=True)]
    assert_split(split(install.data, 'svhn', 1, 20), *both)


def test_stl10_turns_its_pictures_and_keeps_its_folds(install, monkeypatch):
    monkeypatch.setattr(create_datasets, 'BATCH_STL10', 15)
    monkeypatch.setattr(splits, 'STL10_FOLD', 20)
    sets, folds = fakes.stl10(install.source, each=2)
    install('stl10')
    assert_records(install.data, 'stl10', sets)
    with open(data_pair.locate_stl10_folds(install.data)) as file:
        assert [list(map(int, line.split())) for line in file] == folds
    dataset = split(install.data, 'stl10', 2, 20)
    assert_split(dataset, *[np.concatenate([sets['train'][i], sets['unlabeled'][i]]) for i in (0, 1)])
    file = records.RecordFile(data_pair.locate_records(install.data, 'stl10', 'unlabeled'))
    assert {records.parse(record).label for record in file.raw()} == {0}  # As the published script reads them.
    assert (dataset.family.mirror, dataset.family.shift) == (True, 12)


def test_digits_are_those_of_scikit_learn_and_the_test_set_is_of_other_forms(install):
    from sklearn.datasets import load_digits

    install('digits')
    digits = load_digits()
    images = np.round(digits.images[..., None] / 16 * 255).astype(np.uint8)
    assert (images.min(), images.max()) == (0, 255)
    parts = {'train': slice(1287), 'test': slice(1287, None)}
    assert_records(install.data, 'digits', {part: (images[at], digits.target[at]) for part, at in parts.items()})
    # A form begins with the digits in order; the test set begins with a form.
    begins = [i for i in range(1797) if digits.target[i : i + 30].tolist() == list(range(10)) * 3]
    assert 1287 in begins and len([i for i in begins if i < 1287]) >= 9


def test_without_a_name_all_that_is_missing_is_installed(install, monkeypatch, capsys):
    sets = fakes.cifar10(install.source)
    for name in set(PUBLISHED) - {'cifar10', 'digits'}:
        monkeypatch.delitem(PUBLISHED, name)
    install()
    assert len(os.listdir(install.data)) == 4
    paths = [data_pair.locate_records(install.data, 'cifar10', part) for part in ('train', 'test')]
    before = [os.stat(path).st_mtime_ns for path in paths]
    os.remove(os.path.join(install.source, 'cifar-10-binary.tar.gz'))
    install('cifar10')
    assert 'cifar10 is installed' in capsys.readouterr().out
    assert [os.stat(path).st_mtime_ns for path in paths] == before
    fakes.cifar10(install.source)
    os.remove(paths[1])
    install('cifar10')
    assert_records(install.data, 'cifar10', sets)
    assert os.stat(paths[0]).st_mtime_ns == before[0]


# --- Archives that are refused ---


def special(name, kind, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def hold(content):
    """Returns a function of a folder that writes CIFAR-10's archive, one of its files replaced."""
    # First in the archive, as what comes after the last member wanted is never looked at.
    return lambda folder: fakes.cifar10(folder, first={'cifar-10-batches-bin/data_batch_3.bin': content})


def cut_off(make, name, keep):
    """Returns a function of a folder that writes archives and cuts one off: `keep` bytes, or a share of them, stay."""

    def write(folder):
        make(folder)
        path = os.path.join(folder, name)
        os.truncate(path, int(keep * os.path.getsize(path)) if keep < 1 else keep)

    return write


def save_mat(shape=(32, 32, 3, 4), kind=np.uint8, **labels):
    """Returns a function of a folder that writes SVHN's archives, the training set of another content."""

    def write(folder):
        fakes.svhn(folder)
        savemat(os.path.join(folder, 'train_32x32.mat'), {'X': np.zeros(shape, kind), **labels})

    return write


def give_labels(count, value=1):
    return dict(y=np.full([count, 1], value, np.uint8))


def pair_wrongly(folder):
    """Writes STL-10's archive with two labels for one picture."""
    content = {'stl10_binary/%s_X.bin' % part: bytes(3 * 96 * 96) for part in ('train', 'test')}
    path = os.path.join(folder, 'stl10_binary.tar.gz')
    fakes.tar_gz(path, {**content, 'stl10_binary/train_y.bin': bytes([1, 2])})


ROW, MAT = 3073, 'train_32x32.mat'
CIFAR, CUT = 'cifar-10-binary.tar.gz', 'cifar-10-binary.tar.gz cannot be read .*cut or damaged'
LINK = special('x/data_batch_3.bin', tarfile.SYMTYPE, '/etc/passwd')
WRONG = {  # Name: dataset, function that writes its archive, words of the line.
    'link as data': ('cifar10', hold(LINK), CIFAR + '.* lacks data_batch_3.bin'),
    'large label': ('cifar10', hold(bytes([0] * ROW + [10] * ROW)), CIFAR + '.* picture 1 .*has class 10 of 10'),
    'odd length': ('cifar10', hold(bytes(ROW + 1)), 'data_batch_3.bin has 3074 bytes, no multiple of 3073'),
    'empty member': ('cifar10', hold(b''), CIFAR + '.* data_batch_3.bin has 0 bytes'),
    'missing member': (
        'cifar10',
        functools.partial(fakes.cifar10, without='data_batch_4.bin'),
        'lacks data_batch_4.bin: it is not the published archive',
    ),
    **{'cut at %g' % keep: ('cifar10', cut_off(fakes.cifar10, CIFAR, keep), CUT) for keep in (0, 10, 0.3, 0.9)},
    'more labels than pictures': ('stl10', pair_wrongly, 'holds 1 pictures but 2 labels'),
    'cut mat': ('svhn', cut_off(fakes.svhn, MAT, 0.5), MAT),
    'other shape': ('svhn', save_mat([32, 32, 4], **give_labels(4)), MAT),
    'other type': ('svhn', save_mat(kind=np.float64, **give_labels(4)), MAT),
    'fewer labels': ('svhn', save_mat(**give_labels(3)), MAT),
    'no labels': ('svhn', save_mat(), MAT),
    'label 0': ('svhn', save_mat(**give_labels(4, 0)), MAT),
    'label 11': ('svhn', save_mat(**give_labels(4, 11)), MAT),
    'nothing': ('svhn', save_mat([32, 32, 3, 0], **give_labels(0)), 'svhn-train.tfrecord'),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_archive_is_refused_in_one_line(install, name):
    dataset, write, words = WRONG[name]
    write(install.source)
    with pytest.raises(utils.Error, match=words) as error:
        install(dataset)
    assert '\n' not in str(error.value)
    assert_nothing_installed(install.data)


def test_a_hostile_archive_writes_nothing_but_the_records(install, tmp_path):
    before = {'source', 'data', *os.listdir(tmp_path)}
    folder, evil = 'cifar-10-batches-bin/', tmp_path / 'evil.bin'
    members = dict.fromkeys(('../evil.bin', folder + '../../evil.bin', str(evil)), b'x')
    for name, kind in (('symlink', tarfile.SYMTYPE), ('hardlink', tarfile.LNKTYPE), ('device', tarfile.CHRTYPE)):
        members[name] = special(folder + name, kind, str(evil))
    sets = fakes.cifar10(install.source, first=members)
    install('cifar10')
    assert_records(install.data, 'cifar10', sets)
    assert set(os.listdir(tmp_path)) == before
    assert sorted(os.listdir(install.data)) == ['cifar10-test.tfrecord', 'cifar10-train.tfrecord']
    assert os.listdir(install.source) == ['cifar-10-binary.tar.gz']


def test_a_truncated_stl10_leaves_nothing_that_looks_whole(install):
    fakes.stl10(install.source, each=2)
    path = os.path.join(install.source, 'stl10_binary.tar.gz')
    os.truncate(path, os.path.getsize(path) - 300_000)
    with pytest.raises(utils.Error, match=r'stl10_binary.tar.gz cannot be read'):
        install('stl10')
    assert sorted(os.listdir(install.data)) == ['stl10-test.tfrecord', 'stl10-train.tfrecord']
    with pytest.raises(utils.Error, match=r'stl10-unlabeled.tfrecord is missing'):
        split(install.data, 'stl10', 0, 100)


# --- What breaks off, whatever a command makes ---


COMMANDS = {  # Name: a command line; {here} is a folder with archives and pictures.
    'archive': 'create_datasets.py --source={here} --noverify cifar10',
    'resized': 'create_datasets.py digits --size=16x16 --name=mine',
    'pictures': 'create_datasets.py --from_folder={here}/pictures --name=mine --test_fraction=.3',
    'describe': 'create_datasets.py --describe=mine',
    'split': 'create_split.py --seed=3 --size=10 digits',
    'inspect': 'inspect_dataset.py digits.3@10-100',  # Makes its split, as training does.
}


@pytest.fixture
def call(server, digits_dir, tmp_path):
    """Runs COMMANDS in a folder that holds the digits; call.named() gives the names of its files."""
    fakes.cifar10(str(tmp_path))
    place(tmp_path / 'pictures', *('%s/%d.png' % (name, i) for name in ('cat', 'dog') for i in range(9)))
    data_dir = shutil.copytree(digits_dir, tmp_path / 'data')

    def call(name, *first):
        script, *args = COMMANDS[name].format(here=tmp_path).split()
        return server.run('scripts/' + script, '--data_dir=%s' % data_dir, *args, first=first)

    call.named = lambda: sorted(path for path, content in tree(data_dir).items() if content)
    return call


def send_signal(name):
    """Arranges for a signal when the 15th record is written: the first of an archive's files, the second of a set."""
    before(tf.io.TFRecordWriter, 'write', lambda n, *_: n == 15 and os.kill(os.getpid(), getattr(signal, name)))


def end_at_last_name():
    """Arranges for a kill when all files of a set but the last one have got their names."""
    before(os, 'link', lambda n, part, path: path.endswith('.json') and os._exit(9))


BREAKS = [(name, 'full disk') for name in ('archive', 'resized', 'pictures', 'split')]
BREAKS += [('archive', 'SIGINT'), ('pictures', 'SIGTERM'), ('split', 'SIGHUP')]


@pytest.mark.parametrize(('name', 'harm'), BREAKS)
def test_what_breaks_off_leaves_nothing(call, name, harm):
    named = call.named()
    if harm == 'full disk':
        assert_one_line_error(call(name, functools.partial(fakes.limit_files, 3000)), 'cannot write', '.tfrecord')
    else:
        done = call(name, functools.partial(send_signal, harm))
        assert done.returncode == 128 + getattr(signal, harm) and 'Traceback' not in done.stderr
        if harm == 'SIGINT':
            assert_one_line_error(done, 'interrupted', codes=(130,))
    assert call.named() == named


KILLED = [('resized', 'resized'), ('pictures', 'pictures'), ('split', 'split'), ('split', 'inspect')]


@pytest.mark.parametrize(('killed', 'again'), KILLED)
def test_a_set_whose_process_was_killed_between_the_names_is_made_again(call, killed, again):
    named = call.named()
    assert call(killed, end_at_last_name).returncode == 9
    assert [name for name in call.named() if name not in named and name.endswith('.tfrecord')]
    assert call(again).returncode == 0
    made = set(call.named()) - set(named)
    assert [name for name in made if name.endswith('.json')] and not [name for name in made if '.part-' in name]


def test_what_a_killed_process_left_is_no_dataset_to_be_described(call):
    named = call.named()
    assert call('pictures', end_at_last_name).returncode == 9
    assert_one_line_error(call('describe'), 'mine-train.tfrecord is missing')
    assert call.named() == named


# --- Downloads ---


@pytest.fixture
def site(tmp_path):
    """Serves tmp_path/www. `limit` cuts each answer, `asked` lists the names that were asked for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def log_request(self, *args):
            site.asked.append(self.path.strip('/'))

        def copyfile(self, source, target):
            target.write(source.read(site.limit))

    (tmp_path / 'www').mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / 'www'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as site:
        site.limit, site.asked, site.folder = None, [], tmp_path / 'www'
        site.url = 'http://127.0.0.1:%d/' % site.server_port
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site
        site.shutdown()


@pytest.fixture
def archive(site):
    """A published archive of 100 kB on the site."""
    content = np.random.RandomState(0).bytes(100_000)
    (site.folder / 'x.bin').write_bytes(content)
    return Archive(site.url + 'x.bin', hashlib.sha256(content).hexdigest())


def content_of(path):
    with open(path, 'rb') as f:
        return f.read()


def test_a_download_is_the_published_file_whole_and_once_or_nothing(site, archive, tmp_path):
    folder, content = str(tmp_path / 'new'), content_of(site.folder / 'x.bin')
    os.mkdir(folder)

    def refuse(archive, words):
        with pytest.raises(utils.Error, match='cannot download .*' + words):
            archives.download(archive, folder)
        assert not os.listdir(folder)

    site.limit = 30_000
    refuse(archive, 'x.bin .*try again')
    site.limit, missing = None, Archive(site.url + 'nothing.bin', '')
    refuse(missing, 'nothing.bin .*404.*--source')
    for other in content[:-1], content[:-1] + b'y':
        (site.folder / 'x.bin').write_bytes(other)
        refuse(archive, 'hash.*--noverify')
    os.remove(archives.download(archive, folder, verify=False))
    (site.folder / 'x.bin').write_bytes(content)
    site.asked = []
    for _ in range(2):
        assert content_of(archives.download(archive, folder)) == content
    assert site.asked == ['x.bin']
    os.remove(os.path.join(folder, 'x.bin'))
    site.shutdown()
    site.server_close()
    refuse(archive, 'x.bin ')


def test_a_dataset_is_downloaded_and_the_archive_removed(site, install, monkeypatch):
    sets = fakes.cifar10(str(site.folder))
    archive = Archive(site.url + CIFAR, hashlib.sha256(content_of(site.folder / CIFAR)).hexdigest())
    row = PUBLISHED['cifar10']
    here = {part: (n, layout, archive, given) for part, (n, layout, _, given) in row.files.items()}
    monkeypatch.setitem(PUBLISHED, 'cifar10', dataclasses.replace(row, files=here))
    install('cifar10', source='', verify=True)
    assert_records(install.data, 'cifar10', sets)
    assert sorted(os.listdir(install.data)) == ['cifar10-test.tfrecord', 'cifar10-train.tfrecord']
    assert site.asked == [CIFAR]


def test_what_a_killed_download_left_goes(site, archive, tmp_path):
    (tmp_path / 'downloads').mkdir()
    for name in ('tmp0a_1b2c3', 'tmp.txt'):
        (tmp_path / 'downloads' / name).write_bytes(b'half')
    with create_datasets.fetching(str(tmp_path), '', True) as fetch:
        fetch(archive)
    assert os.listdir(tmp_path / 'downloads') == ['tmp.txt']


def test_two_that_download_to_one_folder_take_turns(site, archive, tmp_path, capsys):
    """The second waits, and finds what the first one left; their bytes never meet in one file."""
    order = []

    def download_as_well():
        with create_datasets.fetching(str(tmp_path), '', True) as fetch:
            order.append(content_of(fetch(archive)))

    second = threading.Thread(target=download_as_well)
    with create_datasets.fetching(str(tmp_path), '', True) as fetch:
        fetch(archive)
        second.start()
        time.sleep(0.3)
        order.append('first')
    second.join()
    assert order == ['first', content_of(site.folder / 'x.bin')]
    assert 'Waiting for another process' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['www']


@pytest.mark.parametrize('name', ['.downloads.lock', 'downloads', 'downloads/x.bin'])
def test_nothing_is_written_through_a_link(site, archive, tmp_path, name):
    victim, data_dir = tmp_path / 'victim', tmp_path / 'data'
    os.makedirs(data_dir / os.path.dirname(name))
    victim.write_text('kept') if 'x' in name or '.' in name else victim.mkdir()
    os.symlink(victim, data_dir / name)
    refused = pytest.raises(utils.Error, match='is a link, and nothing is written through it')
    with (
        contextlib.nullcontext() if name == 'downloads/x.bin' else refused,  # The download takes the link's place.
        create_datasets.fetching(str(data_dir), '', True) as fetch,
    ):
        fetch(archive)
    assert victim.read_text() == 'kept' if victim.is_file() else not os.listdir(victim)


# --- Resized ---


RESIZED = {  # Dataset: the new size, by what the sides are divided, Family's parts, mirror and shift.
    'cifar10': ('16x16', 2, ('train',), True, 2),
    'svhn': ('16x16', 2, ('train',), False, 2),  # Its two training files become one.
    'stl10': ('32x32', 3, ('train', 'unlabeled'), True, 4),
}


@pytest.mark.parametrize('name', RESIZED)
def test_a_published_dataset_resized_is_a_dataset_of_its_own(install, name):
    size, factor, parts, mirror, shift = RESIZED[name]
    sets = fakes.stl10(install.source, each=1)[0] if name == 'stl10' else getattr(fakes, name)(install.source)
    install(name, size=size, name='small')
    if name == 'svhn':
        sets['train'] = [np.concatenate(pair) for pair in zip(sets['train'], sets.pop('extra'), strict=True)]
    side = int(size[:2])
    for part, (images, labels) in sets.items():
        found = records.read(data_pair.locate_records(install.data, 'small', part), unlabeled=True)
        averages = images.reshape(-1, side, factor, side, factor, 3).mean((2, 4))
        assert np.abs(found[0] - averages).max() <= 1 and (found[1] == labels).all()
    expected = Family(side, side, 3, 10, mirror, shift, parts=parts, classes=FAMILIES[name].classes)
    assert data_pair.find_family(install.data, 'small') == expected


def test_grey_pictures_can_grow_and_names_are_not_taken_twice(install, capsys):
    install('digits', size='16x16', name='large')
    images, labels = records.read(data_pair.locate_records(install.data, 'large', 'test'))
    assert images.shape == (510, 16, 16, 1) and labels.max() == 9
    assert data_pair.find_family(install.data, 'large').shift == 2
    assert split(install.data, 'large', 1, 20).height == 16
    with pytest.raises(utils.Error, match=r'large.json exists already'):
        install('digits', size='8x8', name='large')
    install('digits', size='8x16', name='narrow', augment='shift1')
    narrow = data_pair.find_family(install.data, 'narrow')
    assert (narrow.height, narrow.width, narrow.mirror, narrow.shift) == (16, 8, False, 1)
    assert 'digits is installed' in capsys.readouterr().out  # It is not asked for again.


# --- The command line ---


BAD = [
    (['nothing'], dict(), 'unknown dataset nothing: known are cifar10,'),
    (['digits', 'x', 'y'], dict(), 'unknown dataset x, y'),
    (['digits'], dict(from_folder='x'), 'either names of datasets or --from_folder'),
    (['digits'], dict(describe='x'), 'either names of datasets or --describe'),
    ([], dict(describe='x', size='4x4'), '--size is for names of datasets or --from_folder, which is not given'),
    (['digits'], dict(classes='a,b'), '--classes is for --describe, which is not given'),
    (['digits'], dict(labels='x.csv'), '--labels is for --from_folder, which is not given'),
    (['digits'], dict(size='4x4'), 'to resize, give one dataset, --size and --name'),
    (['digits'], dict(name='mini'), 'to resize, give one dataset, --size and --name'),
    ([], dict(name='mini', size='4x4'), 'to resize, give one dataset'),
    (['digits', 'cifar10'], dict(name='mini', size='4x4'), 'to resize, give one dataset'),
    (['digits'], dict(name='mini', size='4'), 'size=4: give WIDTHxHEIGHT'),
    (['digits'], dict(name='svhn', size='4x4'), 'name=svhn is not allowed'),
]


@pytest.mark.parametrize(('names', 'flags', 'words'), BAD)
def test_bad_arguments_change_nothing(tmp_path, monkeypatch, names, flags, words):
    monkeypatch.delenv('ML_DATA', raising=False)
    with pytest.raises(utils.Error, match=words):
        create_datasets.create(names, **{'data_dir': str(tmp_path / 'data'), **flags})
    assert_nothing_installed(tmp_path / 'data')


def test_the_command_line(server, tmp_path):
    fakes.cifar10(str(tmp_path))
    env = dict(ML_DATA=str(tmp_path / 'data'))
    args = 'scripts/create_datasets.py', '--source', tmp_path, 'cifar10'
    assert_one_line_error(server.run(*args, env=env), CIFAR, 'not the published c4a38c50a1bc', '--noverify')
    assert_nothing_installed(tmp_path / 'data')
    done = server.run(*args, '--noverify', env=env)
    assert done.returncode == 0, done.stderr
    assert 'cifar10-train.tfrecord: 20 pictures' in done.stdout
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('name', first_is_fast('SIGTERM', 'SIGHUP'))
def test_a_signal_that_comes_when_all_is_done_is_no_traceback(tmp_path, name):
    code = """if True:
        import atexit, os, signal, sys
        from libml.cli import script
        atexit.register(os.kill, os.getpid(), signal.%s)
        script.run(lambda: None, {})"""
    done = command('-c', code % name)
    assert done.returncode == -getattr(signal, name) and 'Traceback' not in done.stderr
