"""What a run has learned: predict.py, evaluate.py and export.py give what the training's own network gives."""

import csv
import glob
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import textwrap
import types
import warnings

import fakes
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import assert_one_line_error, command, first_is_fast
from forked import before
from PIL import Image

from ablation.ab_mixmatch import PARAMS, AblationMixMatch
from libml import data, data_pair, experiment, files, records, trained, utils
from libml.cli import drawing
from libml.intake import labels, pictures
from libml.running import checkpoints
from scripts import create_datasets, create_split, evaluate, export, predict

TINY = dict(
    batch=16, filters=2, repeat=1, ema=0.5, warmup_kimg=1, seed=1, train_kimg=1, report_kimg=1, precision='float32'
)
CLASSES = ('a cat', 'größer, "dog"', 'x$_$y')  # Commas, quotes and signs of other alphabets are names, too.
HEIGHT, WIDTH = 8, 12
FRESH = """
import sys
import numpy as np
import tensorflow as tf
folder, file = sys.argv[1:]
images = np.load(file)
classify = tf.saved_model.load(folder).signatures['serving_default']
found = classify(images=tf.constant(images))
assert not [name for name in sys.modules if name.startswith('libml')]
for shape in ([1, 224, 224, 3], [1, 8, 11, 3], [1, 12, 8, 3]):
    try:
        sys.exit('takes %s: %s' % (shape, classify(images=tf.zeros(shape, tf.uint8))['probabilities']))
    except tf.errors.InvalidArgumentError:
        pass
interpreter = tf.lite.Interpreter(folder + '/model.tflite')
(entry,), (exit,) = interpreter.get_input_details(), interpreter.get_output_details()
interpreter.resize_tensor_input(entry['index'], images.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(entry['index'], images)
interpreter.invoke()
classes = found['classes'].numpy().astype('S')
lite = interpreter.get_tensor(exit['index'])
np.savez(file + '.npz', lite=lite, classes=classes, probabilities=found['probabilities'].numpy())
"""


def train(data_dir, dataset, train_dir, **given):
    """Trains a tiny run; returns its folder."""
    with tf.Graph().as_default():
        experiment.run(
            AblationMixMatch, data_dir=str(data_dir), dataset=dataset, train_dir=str(train_dir), **{**TINY, **given}
        )
    (folder,) = glob.glob(os.path.join(glob.escape(str(train_dir)), dataset, '*'))
    return folder


def picture(random, label, height, width):
    """Returns a PIL.Image whose colour tells its class."""
    pixels = random.randint(0, 120, [height, width, 3])
    pixels[..., label] += 120
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Pictures of three classes in one folder, oblong and grey ones among them; their dataset; a run that learned it.

    Gives an object with the paths `pictures`, `labels`, `data` and `run`, and `truth`, {file: class}.
    """
    base, random = tmp_path_factory.mktemp('own'), np.random.RandomState(0)
    (base / 'pictures' / 'deep' / 'er').mkdir(parents=True)
    rows, truth = [], {}
    for i, (place, label) in enumerate(itertools.product(['', 'deep/', 'deep/er/'] * 4, range(3))):
        file = '%s%03d.%s' % (place, i, 'png' if i % 5 else 'bmp')
        image = picture(random, label, *((30, 9) if i % 4 == 0 else (8, 40) if i % 4 == 1 else (HEIGHT, WIDTH)))
        (image.convert('L') if i == 7 else image).save(base / 'pictures' / file)
        truth[file] = CLASSES[label]
        rows.append(dict(file=file, **{'class': CLASSES[label]}, split='test' if i >= 27 else 'train'))
    write_table(base / 'labels.csv', rows)
    make(base / 'pictures', base / 'labels.csv', 'own', base / 'data')
    create_split.make('own', size=9, seed=1, data_dir=str(base / 'data'))
    run = train(base / 'data', 'own.1@9-3', base / 'runs', whiten=True)
    paths = dict(pictures=base / 'pictures', labels=base / 'labels.csv', data=base / 'data', run=run)
    return types.SimpleNamespace(**paths, truth=truth)


def make(folder, labels, name, data_dir, **given):
    """Makes a dataset of pictures and a table of labels."""
    size = '%dx%d' % (WIDTH, HEIGHT)
    how = dict(from_folder=str(folder), labels=str(labels), name=name, data_dir=str(data_dir), size=size, **given)
    create_datasets.create(**how)


def write_table(path, rows):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read_table(path):
    with open(path, newline='', encoding='utf-8-sig') as file:
        return list(csv.DictReader(file))


def by_the_model(world, images, raw=False, run=None):
    """Returns the probabilities of images, uint8 [n, H, W, C], by the training's own classify_op or classify_raw."""
    args = trained.read_args(run or world.run)
    split = data_pair.parse(args['dataset'])
    dataset = data_pair.read_dataset(split, str(world.data), whiten=args['whiten'])
    with tf.Graph().as_default():
        params = {name: args[name] for name in (*PARAMS, 'nclass')}
        model = AblationMixMatch(str(world.data), dataset, seed=1, **params)
        with model.trainer.opening_session() as session:
            model.trainer.checkpoints.restore(session, checkpoints.resolve(run or world.run))
            op = model.ops.classify_raw if raw else model.ops.classify_op
            return session.run(op, {model.ops.x: dataset.to_float(images)})


# --- The same numbers ---


def test_files_are_classified_as_their_records_are(world, tmp_path, capsys):
    out = tmp_path / 'predictions.csv'
    predict.predict(world.run, [str(world.pictures)], str(out), probabilities=True, data_dir=str(world.data))
    rows = read_table(out)
    assert [row['file'] for row in rows] == sorted(world.truth)
    assert list(rows[0]) == ['file', 'class', 'confidence', *('p:' + name for name in CLASSES)]
    files = [data_pair.locate_records(str(world.data), 'own', part) for part in ('train', 'test')]
    images = np.concatenate([records.read(file)[0] for file in files])
    expected = dict(zip(map(bytes, images), by_the_model(world, images), strict=True))
    for row in rows:
        pixels = pictures.convert(os.path.join(world.pictures, row['file']), (HEIGHT, WIDTH), 3)
        found = [float(row['p:' + name]) for name in CLASSES]
        np.testing.assert_allclose(found, expected[bytes(pixels)], atol=2e-6)
        assert row['class'] == CLASSES[np.argmax(found)] and float(row['confidence']) == max(found)
    assert 'all' in capsys.readouterr().out


@pytest.mark.parametrize('weights', trained.WEIGHTS)
def test_the_classifier_is_the_networks_of_the_training(weights, world):
    images = np.random.RandomState(1).randint(0, 256, [5, HEIGHT, WIDTH, 3]).astype(np.uint8)
    images[0], images[1] = 0, 255
    found = trained.load(world.run, weights=weights, data_dir=str(world.data)).classify(images)
    np.testing.assert_allclose(found, by_the_model(world, images, raw=weights == 'raw'), atol=1e-6)
    assert found.dtype == np.float32


def test_the_weights_differ(world):
    images = np.zeros([1, HEIGHT, WIDTH, 3], np.uint8)
    averaged, raw = (
        trained.load(world.run, weights=w, data_dir=str(world.data)).classify(images) for w in trained.WEIGHTS
    )
    assert abs(averaged - raw).max() > 1e-6


@pytest.mark.parametrize('arch, scales', first_is_fast(('shake', 2), ('cnn13', 3), ('convnet', 1)))
def test_other_networks(arch, scales, digits_dir, tmp_path):
    dataset = 'digits.1@20-100'
    if arch == 'cnn13':
        create_datasets.create(['digits'], name='large', size='16x16', data_dir=str(tmp_path / 'data'))
        create_split.make('large', size=20, seed=1, data_dir=str(tmp_path / 'data'))
        dataset, digits_dir = 'large.1@20-100', tmp_path / 'data'
    run = train(digits_dir, dataset, tmp_path / 'runs', arch=arch, scales=scales, batch=64)
    classifier = trained.load(run, data_dir=str(digits_dir))
    images = np.random.RandomState(1).randint(0, 256, [3, *classifier.family.shape]).astype(np.uint8)
    expected = by_the_model(types.SimpleNamespace(data=digits_dir), images, run=run)
    np.testing.assert_allclose(classifier.classify(images), expected, atol=1e-6)


def test_the_export_gives_the_same_in_a_fresh_process(world, tmp_path):
    images = np.random.RandomState(1).randint(0, 256, [7, HEIGHT, WIDTH, 3]).astype(np.uint8)
    images[0], images[1] = 0, 255
    np.save(tmp_path / 'images.npy', images)
    export.export(world.run, str(tmp_path / 'out'), tflite=True, data_dir=str(world.data))
    assert sorted(os.listdir(tmp_path)) == ['images.npy', 'out']
    assert {'saved_model.pb', 'model.tflite'} <= set(os.listdir(tmp_path / 'out'))
    (tmp_path / 'fresh.py').write_text(FRESH)
    done = command(tmp_path / 'fresh.py', tmp_path / 'out', tmp_path / 'images.npy', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / 'images.npy.npz') as found:
        expected = by_the_model(world, images)
        np.testing.assert_allclose(found['probabilities'], expected, atol=1e-5)
        np.testing.assert_allclose(found['lite'], expected, atol=1e-3)
        assert [name.decode() for name in found['classes']] == list(CLASSES)
    assert (tmp_path / 'out' / 'labels.txt').read_text(encoding='utf-8').splitlines() == list(CLASSES)


def test_the_documentation_prepares_pictures_as_predict_does(tmp_path):
    text = (pathlib.Path(__file__).parent.parent / 'docs' / 'trained.md').read_text(encoding='utf-8')
    code = re.search(r'^( +)from PIL import .*?return [^\n]*', text, re.DOTALL | re.MULTILINE)
    exec(textwrap.dedent(code[0]), here := dict(np=np))
    for size in [(70, 41), (20, 90), (9, 9)]:
        path = str(tmp_path / ('%dx%d.png' % size))
        picture(np.random.RandomState(0), 1, *size).save(path)
        for mode, colors in dict(RGB=3, L=1).items():
            found = here['prepare'](path, (WIDTH, HEIGHT), mode).reshape(HEIGHT, WIDTH, colors)
            np.testing.assert_array_equal(found, pictures.convert(path, (HEIGHT, WIDTH), colors))


def test_the_signature_is_the_contracts(world, tmp_path):
    export.export(world.run, str(tmp_path / 'out'), data_dir=str(world.data))
    with tf.Graph().as_default(), tf.Session() as session:
        signature = tf.saved_model.load(session, ['serve'], str(tmp_path / 'out')).signature_def['serving_default']
    described = {
        name: (tf.as_dtype(info.dtype).name, [d.size for d in info.tensor_shape.dim])
        for name, info in [*signature.inputs.items(), *signature.outputs.items()]
    }
    assert described == dict(
        images=('uint8', [-1, HEIGHT, WIDTH, 3]), probabilities=('float32', [-1, 3]), classes=('string', [3])
    )


def test_any_number_of_pictures(world):
    classifier = trained.load(world.run, data_dir=str(world.data))
    images = np.random.RandomState(1).randint(0, 256, [7, HEIGHT, WIDTH, 3]).astype(np.uint8)
    whole, classifier.batch = classifier.classify(images), 3
    np.testing.assert_allclose(classifier.classify(images), whole, atol=1e-6)
    assert classifier.classify(images[:0]).shape == (0, 3)
    path = next(world.pictures.rglob('*.png'))
    assert classifier.guess(path) == classifier.guess([str(path)])
    for wrong in (images.astype(np.float32), images[0], images[..., :1]):
        with pytest.raises(ValueError, match='needs uint8'):
            classifier.classify(wrong)


def test_pictures_are_read_only_a_little_ahead(world):
    classifier = trained.load(world.run, data_dir=str(world.data))
    classifier.batch, taken = 4, []
    some = str(world.pictures / '001.png')
    found = classifier.classify_files(taken.append(1) or some for _ in itertools.count())
    for _ in range(20):
        assert next(found)[1].shape == (3,)
    assert len(taken) < 20 + 100 + 8 * os.cpu_count()
    found.close()
    assert classifier.guess([some])[0][0] in CLASSES


def test_a_spreadsheet_reads_the_table_as_utf8_and_finds_no_formula_in_it(world, tmp_path, monkeypatch):
    names = '=cmd|calc!A1.png', '+SUM(1).png', '-1.png', '@x.png', '\t=1.png', '＝1.png', 'ä.png', 'x\r1.png', 'x=1.png'
    (tmp_path / 'new').mkdir()
    for name in names:
        shutil.copy(world.pictures / '001.png', tmp_path / 'new' / name)
    load = trained.load

    def renamed(*args, **kwargs):
        classifier = load(*args, **kwargs)
        classifier.classes = '=1+1', '=1+1', '=1+1'
        return classifier

    monkeypatch.setattr(trained, 'load', renamed)
    predict.predict(world.run, [str(tmp_path / 'new')], str(tmp_path / 'p.csv'), data_dir=str(world.data))
    assert (tmp_path / 'p.csv').read_bytes().startswith(b'\xef\xbb\xbffile,')
    rows = read_table(tmp_path / 'p.csv')
    assert {row['file'] for row in rows} == {name if name[0] in 'äx' else './' + name for name in names}
    assert {os.path.normpath(row['file']) for row in rows} == set(names)
    assert {row['class'] for row in rows} == {"'=1+1"}
    assert {row.label for row in labels.read_labels(str(tmp_path / 'p.csv'))} == {'=1+1'}


def test_a_corrected_table_is_a_table_of_labels(world, tmp_path):
    predict.predict(world.run, [str(world.pictures)], str(tmp_path / 'p.csv'), data_dir=str(world.data))
    write_table(
        tmp_path / 'p.csv', [{**row, 'class': world.truth[row['file']]} for row in read_table(tmp_path / 'p.csv')]
    )
    write_table(tmp_path / 't.csv', [{'file': file, 'class': name} for file, name in world.truth.items()])
    for name in 'pt':
        make(world.pictures, tmp_path / (name + '.csv'), name, tmp_path / 'data', test_fraction=0.25)
    for part in ('train', 'test'):
        p, t = (data_pair.locate_records(str(tmp_path / 'data'), name, part) for name in 'pt')
        assert records.RecordFile(p).fingerprint == records.RecordFile(t).fingerprint


# --- Evaluation ---


def test_evaluation_of_a_run(world, tmp_path, capsys):
    before = sorted(os.listdir(world.run))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = evaluate.evaluate(world.run, out=str(tmp_path / 'e'), data_dir=str(world.data))
    files = ['confusion.png', 'mistakes.csv', 'mistakes.png', 'reliability.png', 'test.json']
    assert sorted(os.listdir(tmp_path / 'e')) == files
    written = json.loads((tmp_path / 'e' / 'test.json').read_text())
    assert written.items() >= found.items() and written['set'] == 'test'
    images, labels = records.read(data_pair.locate_records(str(world.data), 'own', 'test'))
    right = by_the_model(world, images).argmax(1) == labels
    assert found['pictures'] == len(labels) and found['accuracy'] == pytest.approx(100 * right.mean())
    assert sorted(os.listdir(world.run)) == before
    said = capsys.readouterr().out
    assert all(name in said for name in ('balanced accuracy', 'precision', 'recall', *CLASSES))


def test_a_picture_that_cannot_be_drawn_costs_no_numbers(world, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, 'draw_confusion', None)
    with pytest.raises(TypeError):
        evaluate.evaluate(world.run, out=str(tmp_path), data_dir=str(world.data))
    assert sorted(os.listdir(tmp_path)) == ['mistakes.csv', 'test.json']


@pytest.mark.parametrize('set', ['valid', 'labeled', 'unlabeled'])
def test_other_sets(set, world):
    found = evaluate.evaluate(world.run, set, data_dir=str(world.data))
    assert found['pictures'] == dict(valid=3, labeled=9, unlabeled=15)[set]
    assert os.path.isfile(os.path.join(world.run, 'evaluation', set + '.json'))
    shutil.rmtree(os.path.join(world.run, 'evaluation'))


def test_another_set_or_the_raw_weights_replace_no_result_of_the_test_set(world, tmp_path, capsys):
    kinds = 'confusion.png', 'mistakes.csv', 'mistakes.png', 'reliability.png'
    wanted = {}
    choices = {('test', 'averaged'): '', ('valid', 'averaged'): 'valid-', ('test', 'raw'): 'raw-'}
    for (set, weights), prefix in {**choices, ('valid', 'raw'): 'raw-valid-'}.items():
        evaluate.evaluate(world.run, set, str(tmp_path), str(world.data), weights=weights)
        names = [prefix.removesuffix('valid-') + set + '.json', *(prefix + kind for kind in kinds)]
        said = capsys.readouterr().out
        assert all(name in said for name in names)
        assert not wanted.keys() & names and sorted([*wanted, *names]) == sorted(os.listdir(tmp_path))
        wanted.update((name, (tmp_path / name).read_bytes()) for name in names)
        assert all((tmp_path / name).read_bytes() == content for name, content in wanted.items())


def test_each_mistake_is_named_by_its_file(world, tmp_path):
    out = tmp_path / 'p.csv'
    predict.predict(world.run, [str(world.pictures)], str(out), data_dir=str(world.data))
    tests = {row['file'] for row in read_table(world.labels) if row['split'] == 'test'}
    rows = [row for row in read_table(out) if row['file'] in tests and row['class'] != world.truth[row['file']]]
    evaluate.evaluate(world.run, out=str(tmp_path), data_dir=str(world.data))
    found = read_table(tmp_path / 'mistakes.csv')
    assert rows and {(row['file'], row['class'], row['guess']) for row in found} == {
        (row['file'], world.truth[row['file']], row['class']) for row in rows
    }
    confidences = [float(row['confidence']) for row in found]
    assert confidences == sorted(confidences, reverse=True)
    assert not any('; ' in row['file'] for row in found)
    labels = data_pair.read_dataset(data_pair.parse('own.1@9-3'), str(world.data)).sets['test'].labels
    assert [CLASSES[labels[int(row['number'])]] for row in found] == [row['class'] for row in found]


@pytest.mark.parametrize('sources', [{}, {'other': 'x.png'}])
def test_mistakes_whose_files_are_not_known(sources):
    images = data.Images(np.zeros([3, 2, 2, 1], np.uint8), [0, 1, 1])
    found = evaluate.tabulate_mistakes(images, np.array([[0.4, 0.6], [0.2, 0.8], [0.9, 0.1]]), ['=a', 'b'], sources)
    assert found.values.tolist() == [['', 'b', "'=a", 0.9, 2], ['', "'=a", 'b', 0.6, 0]]


def probabilities_of(guesses, nclass, confidence):
    """Returns probabilities of guesses, int [n], all of one confidence."""
    found = np.full([len(guesses), nclass], (1 - confidence) / (nclass - 1))
    found[np.arange(len(guesses)), guesses] = confidence
    return found


def test_a_class_that_is_never_guessed():
    labels = np.repeat([0, 1], [190, 10])
    found = evaluate.measure(labels, probabilities_of(np.zeros(200, int), 2, 0.95), ['cat', 'eel'])
    assert (found['accuracy'], found['balanced_accuracy']) == (95, 50)
    assert found['calibration_error'] == pytest.approx(0)
    cat, eel = found['classes']
    assert (cat['precision'], cat['recall'], cat['count']) == (95, 100, 190)
    assert (eel['precision'], eel['recall'], eel['f1'], eel['count']) == (None, 0, 0, 10)
    assert found['confusion'] == [[190, 0], [10, 0]]


def test_a_class_that_no_picture_is_of():
    found = evaluate.measure(np.array([0, 0, 1, 1]), probabilities_of(np.array([0, 2, 1, 1]), 3, 0.8), ['a', 'b', 'c'])
    assert (found['accuracy'], found['balanced_accuracy']) == (75, 75)
    assert found['classes'][2] == dict(name='c', precision=0, recall=None, f1=0, count=0)
    assert found['calibration_error'] == pytest.approx(5)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize('nclass', [3, 100, 101, 20000])
def test_the_confusions_of_many_classes_are_the_cells_that_are_not_empty(nclass):
    labels, guesses = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 2, 2, 1, 2, 0])
    probabilities = np.zeros([6, nclass], np.float32)
    probabilities[np.arange(6), guesses] = 1
    found = evaluate.measure(labels, probabilities, ['c%d' % i for i in range(nclass)])
    cells = [[0, 0, 1], [0, 2, 2], [1, 1, 1], [2, 0, 1], [2, 2, 1]]
    if nclass > 100:
        assert found['confusion_cells'] == cells and 'confusion' not in found
    else:
        assert np.shape(found['confusion']) == (nclass, nclass)
        assert all(found['confusion'][i][j] == count for i, j, count in cells)
    if nclass > 20:
        pairs, classes = evaluate.draw_confusion(found, 'title').axes
        assert [text.get_text() for text in pairs.get_yticklabels()] == ['c0 → c2', 'c2 → c0']
        assert [text.get_text() for text in classes.get_yticklabels()] == ['c0 (3)', 'c2 (2)', 'c1 (1)']
    assert len(json.dumps(found)) < 150 * nclass + 30000 and found['accuracy'] == 50


def test_calibration_against_a_loop():
    random = np.random.RandomState(0)
    confidence, right = random.uniform(0.1, 1, 500), random.rand(500) < 0.5
    confidence[:3] = 1, 0.2, 1 / 3
    expected = 0
    for i in range(evaluate.BINS):
        inside = (confidence > i / evaluate.BINS) & (confidence <= (i + 1) / evaluate.BINS)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    bins = evaluate.measure_calibration(confidence, right)
    assert (bins['count'] * (bins.accuracy - bins.confidence).abs()).sum() / 500 == pytest.approx(100 * expected)


WIDE, HIGH, RIGHT = ((4, 40, 1), 3), ((40, 4, 3), 60), ((8, 8, 3), 0)  # Shape, and the number of mistakes.


@pytest.mark.parametrize(
    ('nclass', 'shape', 'wrong'), first_is_fast((21, *WIDE), (101, *HIGH), (2, *RIGHT), (100, *HIGH), (3300, *WIDE))
)
def test_drawings(nclass, shape, wrong, tmp_path):
    random, names = np.random.RandomState(0), ['a very long name of a class, the %dth' % i for i in range(nclass)]
    labels = random.randint(0, nclass, 80)
    guesses = np.where(np.arange(80) < wrong, (labels + 1) % nclass, labels)
    probabilities = probabilities_of(guesses, nclass, 0.9)
    found = evaluate.measure(labels, probabilities, names)
    images = data.Images(random.randint(0, 256, [80, *shape]).astype(np.uint8), labels)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for figure in (
            evaluate.draw_confusion(found, 'title'),
            evaluate.draw_reliability(found, 'title'),
            evaluate.draw_mistakes(images, probabilities, names, 'title'),
        ):
            drawing.save(figure, str(tmp_path / 'figure.png'), bbox_inches='tight')
            assert os.listdir(tmp_path) == ['figure.png']
            with Image.open(tmp_path / 'figure.png') as image:
                assert max(image.size) < 4500


# --- Checkpoints ---


@pytest.fixture
def copy(world, tmp_path):
    """A copy of the run, to be damaged; its newest checkpoint is its second."""
    run = shutil.copytree(world.run, tmp_path / 'copy')
    (ckpt,) = checkpoints.find(os.path.join(run, 'tf'))
    for path in checkpoints.list_files(ckpt):
        shutil.copy(path, path.replace('model.ckpt-0000001024', 'model.ckpt-0000002048'))
    return run


def damage(run, step):
    """Cuts the data of a checkpoint."""
    (path,) = glob.glob(os.path.join(run, 'tf', 'model.ckpt-%010d.data*' % step))
    os.truncate(path, os.path.getsize(path) // 2)


def test_the_newest_whole_checkpoint_is_taken_and_said(copy, world, capsys):
    assert trained.load(copy, data_dir=str(world.data)).ckpt.endswith('2048')
    damage(copy, 2048)
    assert trained.load(copy, data_dir=str(world.data)).ckpt.endswith('1024')
    assert 'Warning: an older checkpoint is taken' in capsys.readouterr().err
    assert [checkpoints.step(ckpt) for ckpt in checkpoints.find(os.path.join(copy, 'tf'))] == [1024, 2048]
    damage(copy, 1024)
    with pytest.raises(utils.Error, match=r'holds no whole checkpoint: .*-0000002048 is not a whole checkpoint'):
        trained.load(copy, data_dir=str(world.data))
    assert capsys.readouterr().err == ''


def test_a_run_is_named_by_its_folder_or_a_checkpoint(copy, world):
    for path in (copy, os.path.join(copy, 'tf'), os.path.join(copy, 'tf', 'model.ckpt-0000002048.index')):
        found = trained.load(str(path), data_dir=str(world.data))
        assert (os.path.samefile(found.folder, copy), found.ckpt[-4:]) == (True, '2048')
    ckpt = os.path.join(copy, 'tf', 'model.ckpt-0000001024')
    assert trained.load(copy, ckpt=ckpt, data_dir=str(world.data)).ckpt == ckpt


def test_a_run_is_named_by_a_folder_that_holds_it_alone(copy, world, tmp_path, capsys, monkeypatch):
    deep = str(tmp_path / 'above' / 'a')
    shutil.move(copy, deep)
    os.symlink(deep, tmp_path / 'above' / 'link')  # The same run once more.
    assert os.path.samefile(trained.load(str(tmp_path / 'above'), data_dir=str(world.data)).folder, deep)
    for name in ('z', 'b'):
        shutil.copytree(deep, tmp_path / 'above' / name)
    os.utime(tmp_path / 'above' / 'b' / 'tf', (9e9, 9e9))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(utils.Error, match=r'above holds 3 runs, see above, the newest last: name one of them'):
        trained.load('above', data_dir=str(world.data))
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == ['above/a', 'above/b', 'above/z'] and lines[-1] == 'above/b'


# --- Bad input: one line, nothing half-written ---


def no_checkpoint(run, data):
    for path in glob.glob(os.path.join(run, 'tf', 'model*')):
        os.remove(path)


def all_damaged(run, data):
    damage(run, 1024)
    damage(run, 2048)


def no_args(run, data):
    shutil.rmtree(os.path.join(run, 'args'))


def description_gone(run, data):
    os.remove(os.path.join(data, 'own.json'))


def change_json(path, **values):
    with open(path) as file:
        found = json.load(file)
    with open(path, 'w') as file:
        json.dump({**found, **values}, file)


def more_classes(run, data):
    change_json(os.path.join(data, 'own.json'), nclass=4, classes=[*CLASSES, 'new'])


def other_classes(run, data):
    change_json(os.path.join(data, 'own.json'), classes=['b', 'c', 'd'])


def another_range(run, data):
    change_json(os.path.join(data, 'own.json'), range=[0, 4095])


def empty_args(run, data):
    files.write_json(os.path.join(run, 'args', 'args.json'), {})


def other_network(run, data):
    change_json(os.path.join(run, 'args', 'args.json'), filters=4)


def not_finite(run, data):
    ckpt = utils.find_latest_checkpoint(os.path.join(run, 'tf'))
    reader = tf.train.load_checkpoint(ckpt)
    with tf.Graph().as_default(), tf.Session() as session:
        for name in reader.get_variable_to_shape_map():
            tf.get_variable(name, initializer=reader.get_tensor(name) * (np.nan if 'bias' in name else 1))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, ckpt, write_meta_graph=False)
    os.remove(ckpt + checkpoints.NOTE)


BROKEN = {
    not_finite: 'holds weights that are no numbers',
    no_checkpoint: 'no whole checkpoint',
    all_damaged: 'no whole checkpoint',
    no_args: 'args.json',
    empty_args: 'args.json is damaged',
    description_gone: 'own.json',
    more_classes: r'other classes now \(4\)',
    other_classes: 'classes',
    another_range: 'pictures of another size or range now',
    other_network: 'does not fit',
}


@pytest.mark.parametrize(
    'name, value',
    [
        ('dataset', 5), ('dataset', '\x1b[31mown.1@9-3'), ('arch', 'resnet9'), ('arch', []), ('seed', True),
        ('filters', 'abc'), ('filters', None), ('filters', 4.5), ('filters', -4), ('filters', 1e30), ('repeat', 10**7),
        ('scales', 0), ('nclass', '3'), ('classes', 'abc'), ('classes', [1, 2, 3]), ('classes', ['a\x1b', 'b', 'c']),
        ('mean', 'text'), ('mean', [0, float('nan'), 0]), ('mean', [0]), ('std', None), ('std', [0, 1, 1]),
        ('data', []), ('data', {'other': 'x'}), ('p_unlabeled', 3), ('train_kimg', 10**400), ('whiten', 'yes'),
        ('pictures', 3),
    ],
    ids=str,
)  # fmt: skip
def test_fields_of_args_json_that_are_not_what_they_should_be(name, value, copy, world):
    path = os.path.join(copy, 'args', 'args.json')
    change_json(path, **{name: value})
    with pytest.raises(utils.Error) as error:
        trained.load(str(copy), data_dir=str(world.data))
    text = str(error.value)
    assert path in text and name in text and len(text) < 500 and not any(map(utils.is_control, text))


@pytest.mark.parametrize(
    ('broken', 'action'),
    [(no_args, 'evaluate'), (no_checkpoint, 'export'), *((broken, 'predict') for broken in BROKEN)],
    ids=lambda case: getattr(case, '__name__', case),
)
def test_broken_runs(broken, action, copy, world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / 'data')
    broken(str(copy), str(data))
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(copy))
    how = dict(out=str(tmp_path / 'out'), data_dir=str(data))
    with pytest.raises(utils.Error, match=BROKEN[broken]) as error:
        if action == 'predict':
            predict.predict(str(copy), [str(world.pictures)], **how)
        else:
            dict(evaluate=evaluate.evaluate, export=export.export)[action](str(copy), **how)
    assert '\n' not in str(error.value)
    assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(copy))) == before


def test_nothing_is_overwritten(world, tmp_path):
    (tmp_path / 'out').write_text('precious')
    with pytest.raises(utils.Error, match='exists already'):
        predict.predict(world.run, [str(world.pictures)], str(tmp_path / 'out'), data_dir=str(world.data))
    with pytest.raises(utils.Error, match='exists already'):
        export.export(world.run, str(tmp_path / 'out'), data_dir=str(world.data))
    with pytest.raises(utils.Error, match='OUT= is not allowed'):  # Not the folder that one stands in.
        export.export(world.run, '')
    assert (tmp_path / 'out').read_text() == 'precious' and os.listdir(tmp_path) == ['out']


def test_pictures_that_cannot_be_read(world, tmp_path, capsys):
    folder = tmp_path / 'new'
    folder.mkdir()
    shutil.copy(world.pictures / '001.png', folder)
    (folder / 'bad.png').write_bytes(b'no picture')
    (folder / 'notes.txt').write_text('no picture')
    Image.fromarray(np.full([9, 9], 1000, np.uint16)).save(folder / 'deep.png')
    out, how = str(tmp_path / 'p.csv'), dict(data_dir=str(world.data))
    with pytest.raises(utils.Error, match='2 pictures cannot be read'):
        predict.predict(world.run, [str(folder)], out, **how)
    err = capsys.readouterr().err
    assert 'bad.png: ' in err and 'deep.png: has values from 1000 to 1000, but the run learned' in err
    assert os.listdir(tmp_path) == ['new']
    predict.predict(world.run, [str(folder)], out, skip_bad=True, **how)
    assert [row['file'] for row in read_table(out)] == ['001.png']
    said = capsys.readouterr().out
    assert '2 left out' in said and 'notes.txt' in said


def test_several_places(world, tmp_path):
    one, folder = str(world.pictures / '001.png'), str(world.pictures / 'deep')
    out = str(tmp_path / 'p.csv')
    places = [folder, one, '%s/./001.png' % world.pictures]
    predict.predict(world.run, places, out, data_dir=str(world.data))
    files = [row['file'] for row in read_table(out)]
    inside = [str(world.pictures / file) for file in world.truth if file.startswith('deep')]
    assert files == sorted([one, *inside])
    os.mkfifo(tmp_path / 'none')  # Nothing waits for what comes out of it.
    for places, word in (
        ([''], 'is no folder and no file'),
        ([str(tmp_path / 'none')], 'is no folder and no file'),
        ([str(tmp_path / 'empty')], 'no pictures'),
    ):
        (tmp_path / 'empty').mkdir(exist_ok=True)
        with pytest.raises(utils.Error, match=word):
            predict.predict(world.run, places, str(tmp_path / 'q.csv'), data_dir=str(world.data))


def test_command_lines(world, server, tmp_path):
    run, data = world.run, '--data_dir=%s' % world.data
    out = tmp_path / 'out'
    for script, *args, word in (
        ['predict', run, 'which'],
        ['predict', run, world.pictures, data, '--out'],
        ['predict', run, world.pictures, data, '--out', out / 'no' / 'folder.csv', 'cannot write'],
        ['predict', tmp_path / 'nothing', world.pictures, data, '--out', out, 'nothing'],
        ['evaluate', 'which'],
        ['evaluate', run, data, '--out', world.labels, 'cannot write'],
        ['export', run, 'which'],
        ['evaluate', '', 'the folder of a run'],
    ):
        assert_one_line_error(server.run('scripts/%s.py' % script, *args), word)
    for script, *args in (['evaluate', run, '--set=all'], ['predict', run, world.pictures, '--weights=x']):
        assert_one_line_error(server.run('scripts/%s.py' % script, *args, data), codes=(2,))
    assert os.listdir(tmp_path) == []
    done = server.run('scripts/predict.py', run, world.pictures, data, '--out', out)
    assert done.returncode == 0 and str(out) in done.stdout, done.stderr


def fill_disk():
    """Lets no file grow beyond 700 bytes once the classifier opens its session; by then it has its weights."""
    before(tf.Session, '__init__', lambda *_: fakes.limit_files(700))


def test_a_full_disk_leaves_nothing(world, server, tmp_path):
    for script, *args in (
        ['predict', world.pictures, '--out', tmp_path / 'p.csv'],
        ['evaluate', '--out', tmp_path / 'e'],
        ['export', tmp_path / 'm'],
    ):
        script, args = 'scripts/%s.py' % script, [world.run, *args, '--data_dir=%s' % world.data]
        assert_one_line_error(server.run(script, *args, first=[fill_disk], env={'TQDM_DISABLE': '1'}), 'cannot write')
    left = [os.path.join(place, name) for place, _, names in os.walk(tmp_path) for name in names]
    assert left == []


# --- The end of a training ---


def test_a_run_ends_with_the_commands_that_use_it(digits_dir, tmp_path, capsys):
    run = train(digits_dir, 'digits.1@20-100', tmp_path / "a place, it's")
    commands = capsys.readouterr().out.split('What it has learned:\n')[1]
    shell = 'python() { printf \'%s\\n\' "$*"; }\n' + commands  # What a shell makes of it.
    lines = subprocess.run(['bash', '-euc', shell], capture_output=True, text=True, check=True).stdout.splitlines()
    end = ' --data_dir=%s' % digits_dir
    assert lines == [
        'scripts/evaluate.py %s%s' % (run, end),
        'scripts/predict.py %s PICTURES --out predictions.csv%s' % (run, end),
        'scripts/export.py %s OUT%s' % (run, end),
    ]


def test_eval_ckpt_passes_over_a_damaged_checkpoint(copy, world, capsys):
    damage(copy, 2048)
    args = trained.read_args(copy)
    given = {name: args[name] for name in ('dataset', 'whiten', *TINY) if name in args and not name.endswith('_kimg')}
    with tf.Graph().as_default():
        experiment.run(
            AblationMixMatch,
            **{**TINY, **given},
            data_dir=str(world.data),
            train_dir=str(world.data),
            eval_ckpt=str(copy),
        )
    said = capsys.readouterr()
    assert 'tuned_ema' in said.out and 'older checkpoint' in said.err
    given.update(data_dir=str(world.data), train_dir=str(world.data), eval_ckpt=str(copy), whiten=False)
    with tf.Graph().as_default(), pytest.raises(utils.Error, match='was trained with whiten=True'):
        experiment.run(AblationMixMatch, **{**TINY, **given})


def test_a_checkpoint_of_another_run_is_refused(copy, world):
    with pytest.raises(utils.Error, match='is of another run than'):
        trained.load(world.run, ckpt=str(copy), data_dir=str(world.data))
    no_args(copy, None)  # Checkpoints alone, moved elsewhere, may be taken.
    assert trained.load(world.run, ckpt=str(copy), data_dir=str(world.data)).ckpt.startswith(str(copy))
