"""Guesses corrected by eye: which are on the page of predict.py, what it does in a browser, the table it saves."""

import base64
import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import time
import types
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image
from test_trained import make, picture, read_table, train, write_table

from libml import data_pair, records, review, utils
from libml.intake import folders, pictures
from scripts import create_split, predict

CLASSES = '</script><b>cat', '=dog, "x"', 'ant'
ODD = '<script>.png', '=x.png', 'a,"b".png', ' y.png', 'ä;z.png', '<!--.png'
BROWSER = shutil.which('chromium'), shutil.which('chromedriver')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder of pictures, a table that names some, their dataset, and a run that learned it."""
    base, random = tmp_path_factory.mktemp('review'), np.random.RandomState(0)
    (base / 'photos').mkdir()
    rows = []
    for i in range(24):
        picture(random, i % 3, 8, 12).save(base / 'photos' / ('l%02d.png' % i))
        rows.append({'file': 'l%02d.png' % i, 'class': CLASSES[i % 3], 'split': 'test' if i >= 18 else 'train'})
    for name in (*ODD, *('u%02d.png' % i for i in range(14))):
        picture(random, 0, 8, 12).save(base / 'photos' / name)
    write_table(base / 'labels.csv', rows)
    make(base / 'photos', base / 'labels.csv', 'own', base / 'data')
    create_split.make('own', size=9, seed=1, data_dir=str(base / 'data'))
    run = train(base / 'data', 'own.1@9-2', base / 'runs', batch=32)
    return types.SimpleNamespace(base=base, photos=base / 'photos', table=base / 'labels.csv', run=run)


def write(world, out, count=200, places=(), **given):
    """Calls predict.py with --review; returns what the page holds, and the page's path."""
    out.mkdir(exist_ok=True)
    how = dict(data_dir=str(world.base / 'data'), review=count, **given)
    predict.predict(world.run, list(map(str, places or [world.photos])), str(out / 'predictions.csv'), **how)
    text = (out / 'review.html').read_text(encoding='utf-8')
    return json.loads(re.search(r'<script id="content"[^>]*>(.*?)</script>', text)[1]), out / 'review.html'


# --- What is on the page ---


def test_half_are_of_the_lowest_confidence_and_none_has_a_label(world, tmp_path):
    found, _ = write(world, tmp_path / 'a', 7)
    items = {item['name']: item for item in found['items']}
    rows = [row for row in read_table(tmp_path / 'a' / 'predictions.csv') if not row['file'].startswith('l')]
    rows = {os.path.normpath(row['file']): row for row in sorted(rows, key=lambda row: float(row['confidence']))}
    assert len(items) == 7 and set(items) <= set(rows) and set(list(rows)[:4]) <= set(items)
    for name, item in items.items():
        assert item['confidence'] == float(rows[name]['confidence'])
        assert found['classes'][item['guess']] == rows[name]['class'].removeprefix("'")
    names = [[item['name'] for item in write(world, tmp_path / str(i), 7, seed=i // 2)[0]['items']] for i in range(4)]
    assert names[0] == names[1] == list(items) and names[2] == names[3] != names[0]
    assert {item['name'] for item in write(world, tmp_path / 'all')[0]['items']} == set(rows)


def test_pictures_are_known_by_their_pixels_and_by_the_table(world, tmp_path):
    shutil.copytree(world.photos, tmp_path / 'photos')
    for name in ('l01.png', 'l20.png', 'u01.png'):  # One for training, one for testing, one without a label.
        shutil.copy(world.photos / name, tmp_path / 'photos' / ('copy-' + name))
    old = [dict(file='u02.png', label='ant', group=''), dict(file='u03.png', label='', group='g')]
    write_table(tmp_path / 'old.csv', old)
    found, _ = write(world, tmp_path, places=[tmp_path / 'photos'], labels=str(tmp_path / 'old.csv'))
    names = {item['name'] for item in found['items']}
    assert names == {*ODD, 'copy-u01.png', *('u%02d.png' % i for i in range(14))} - {'u02.png'}
    assert [item['rows'] for item in found['items'] if item['name'] == 'u03.png'] == [[1]]
    (tmp_path / 'photos' / 'new').mkdir()
    shutil.copy(world.photos / 'u01.png', tmp_path / 'photos' / 'new' / '1.png')
    with pytest.raises(utils.Error, match=r'no row of .* names a picture in .*new: give the folder'):
        write(world, tmp_path / 'new', places=[tmp_path / 'photos' / 'new'], labels=str(tmp_path / 'old.csv'))
    one, _ = write(world, tmp_path / 'one', places=[world.photos / 'u01.png', world.photos / 'l01.png'])
    assert [item['file'] for item in one['items']] == [str(world.photos / 'u01.png')]


def test_a_row_is_of_one_picture_whichever_are_on_the_page(world, tmp_path):
    shutil.copytree(world.photos, tmp_path / 'photos')
    (tmp_path / 'photos' / 'more').mkdir()
    for name in ('u01.png', 'u02.png', 'u03.png'):
        picture(np.random.RandomState(int(name[1:3])), 1, 8, 12).save(tmp_path / 'photos' / 'more' / name)
    (tmp_path / 'photos' / 'u02.png').write_bytes(b'damaged')
    (tmp_path / 'photos' / 'u03.png').write_text('')
    os.rename(tmp_path / 'photos' / 'u03.png', tmp_path / 'photos' / 'u03.heic')
    rows = [('u01.png', 'ant', 'test'), ('u02.png', 'ant', ''), ('u03.heic', 'ant', '')]
    write_table(tmp_path / 'old.csv', [dict(zip(('file', 'class', 'split'), row, strict=True)) for row in rows])
    how = dict(places=[tmp_path / 'photos'], labels=str(tmp_path / 'old.csv'), skip_bad=True)
    rows = {item['name']: item['rows'] for item in write(world, tmp_path / 'out', **how)[0]['items']}
    assert [rows.get(name) for name in ('u01.png', *('more/u%02d.png' % i for i in (1, 2, 3)))] == [None, [], [], []]


def test_names_cannot_end_the_script_or_load_anything(world, tmp_path):
    found, page = write(world, tmp_path)
    text = page.read_text(encoding='utf-8')
    assert text.count('<script') == text.count('</script>') == 2 and text.count('<!--') == 1
    assert set(ODD) <= {item['name'] for item in found['items']} and found['classes'] == sorted(CLASSES)
    assert "default-src 'none'" in text and not re.search(r'https?:|//[a-z]', text.replace(' // ', ''))
    assert len(text.split('\n')) < 250


def test_a_picture_that_is_damaged_meanwhile_leaves_no_page(world, tmp_path, monkeypatch):
    shutil.copytree(world.photos, tmp_path / 'photos')
    choose = review.Review.choose

    def choose_and_damage(*args):
        chosen = choose(*args)
        (tmp_path / 'photos' / 'u03.png').write_bytes(b'half a picture')
        return chosen

    monkeypatch.setattr(review.Review, 'choose', choose_and_damage)
    with pytest.raises(utils.Error, match='u03'):
        write(world, tmp_path / 'out', places=[tmp_path / 'photos'])
    assert not os.listdir(tmp_path / 'out')


def test_a_thumbnail_is_the_whole_picture_as_a_person_sees_it(tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, [900, 600, 3]).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / 'noise.jpg', exif=turned)
    Image.fromarray(np.full([20, 30], 1000, np.uint16)).save(tmp_path / 'deep.png')
    Image.new('RGBA', (10, 1000), (0, 0, 0, 0)).save(tmp_path / 'clear.png')
    expected = ('noise.jpg', (256, 171), 127), ('deep.png', (30, 20), 255), ('clear.png', (3, 256), 255)
    for name, size, value in expected:
        pixels = pictures.convert(tmp_path / name, review.SIDE, 3, (0, 1000))
        url = review.encode(pixels)
        assert 500 * (len(url) + 300) < 20e6  # 300 letters for names and numbers.
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2])))
        assert (image.format, image.size) == ('JPEG', size) and abs(np.mean(image) - value) < 4, name


MISTAKES = [
    (dict(count=0, labels='x.csv'), '--labels is for --review'),
    (dict(labels='none.csv'), 'none.csv'),
    (dict(places=['l01.png', 'l20.png']), 'no guess is left to check'),
    (dict(places=['l01.png', '.'], labels='none.csv'), '--labels goes with one folder of pictures'),
]


def test_mistakes(world, tmp_path):
    for given, word in MISTAKES:
        given = {**given, 'places': [world.photos / name for name in given.get('places', ())]}
        with pytest.raises((utils.Error, OSError), match=word):
            write(world, tmp_path, **given)
        assert os.listdir(tmp_path) == []
    (tmp_path / 'review.html').write_text('precious')
    with pytest.raises(utils.Error, match=r'review.html exists already'):
        write(world, tmp_path, places=[tmp_path / 'not even there'])
    assert (tmp_path / 'review.html').read_text() == 'precious' and os.listdir(tmp_path) == ['review.html']
    with pytest.raises(utils.Error, match='would be one file: choose'):
        predict.predict(world.run, [str(world.photos)], str(tmp_path / 'review.html'), review=1)


# --- Label Studio ---


def annotate(tasks, classes):
    """Returns ({picture: class}, exports as Label Studio writes them) of what an annotator made of some tasks.

    The first task is skipped, the second is not annotated yet, the third is annotated twice alike.
    """
    done, exported, rows = {}, [], []
    for number, task in enumerate(tasks):
        (guess,) = task['predictions'][0]['result']
        name, path = classes[number % 3], urllib.parse.unquote(task['data']['image'].partition('?d=')[2])
        result = [{**guess, 'id': 'x%d' % number, 'origin': 'manual', 'value': {'choices': [name]}}]
        one = dict(id=number, completed_by=1, result=result, was_cancelled=number == 0, lead_time=2.5)
        annotations = [] if number == 1 else [one, one] if number == 2 else [one]
        exported.append(dict(task, id=number, annotations=annotations, predictions=[], project=1))
        if number > 1:
            done[os.path.basename(path)] = name
            rows += [dict(image=task['data']['image'], id=number, choice=name, annotator='1')] * len(annotations)
    table = csv.DictWriter(file := io.StringIO(), sorted(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
    table.writeheader()
    table.writerows(rows)
    return done, {'all.json': json.dumps(exported), 'min.json': json.dumps(rows), 'x.csv': file.getvalue()}


@pytest.fixture
def tasks(world, tmp_path, capsys):
    """The tasks of all pictures, and the labelling configuration that predict.py prints, as parsed XML."""
    how = dict(data_dir=str(world.base / 'data'), label_studio=str(tmp_path / 'tasks.json'))
    predict.predict(world.run, [str(world.photos)], str(tmp_path / 'predictions.csv'), **how)
    (config,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('<View>')]
    return json.loads((tmp_path / 'tasks.json').read_text()), xml.etree.ElementTree.fromstring(config)


def name_picture(world, task):
    """Returns the picture of a task as Label Studio serves it, from the folder /."""
    prefix, path = task['data']['image'].split('?d=')
    assert prefix == '/data/local-files/' and re.fullmatch(r'[\w.%-][\w./%-]+', path)
    return os.path.relpath('/' + urllib.parse.unquote(path), world.photos)


def test_tasks_hold_the_guesses_and_fit_the_configuration(world, tmp_path, tasks):
    tasks, (image, control) = tasks
    assert [choice.get('value') for choice in control] == sorted(CLASSES)
    assert (image.tag, image.get('value')) == ('Image', '$image')
    assert (control.tag, control.get('toName')) == ('Choices', 'image')
    names = {}
    for task in tasks:
        (guess,) = task['predictions']
        (result,) = guess['result']
        assert (result['from_name'], result['to_name']) == (control.get('name'), image.get('name'))
        assert result['type'] == 'choices' and guess['model_version'].startswith('own.1@9-2 model.ckpt-')
        names[name_picture(world, task)] = *result['value']['choices'], guess['score']
    rows = read_table(tmp_path / 'predictions.csv')
    expected = [(row['class'].removeprefix("'"), float(row['confidence'])) for row in rows]
    assert names == dict(zip([os.path.normpath(row['file']) for row in rows], expected, strict=True))


def test_with_a_page_the_tasks_are_of_the_same_pictures(world, tmp_path):
    found, _ = write(world, tmp_path, 7, label_studio=str(tmp_path / 'tasks.json'))
    tasks = json.loads((tmp_path / 'tasks.json').read_text())
    assert [name_picture(world, task) for task in tasks] == [item['name'] for item in found['items']]
    before = sorted(os.listdir(tmp_path))
    for name in ('p.csv', 'tasks.json'):  # The table itself, and what exists.
        with pytest.raises(utils.Error, match=r'one file|tasks.json exists already'):
            how = dict(data_dir=str(world.base / 'data'), label_studio=str(tmp_path / name))
            predict.predict(world.run, [str(world.photos)], str(tmp_path / 'p.csv'), **how)
    assert sorted(os.listdir(tmp_path)) == before


def test_what_label_studio_exports_is_a_table_of_labels(world, tmp_path, tasks):
    done, exports = annotate(tasks[0], sorted(CLASSES))
    assert len(done) == 42
    for name, text in exports.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
        plan = folders.plan_table(str(world.photos), str(tmp_path / name), 0.3)
        items = plan.parts['train'] + plan.parts['test']
        assert {item.path: plan.classes[item.label] for item in items} == done
    page, _ = write(world, tmp_path / 'page', labels=str(tmp_path / 'all.json'))
    assert page['table']['name'] == 'all.csv' and {item['name'] for item in page['items']}.isdisjoint(done)


# --- In a browser ---


class Browser:
    """Headless Chromium, asked through the WebDriver protocol of its chromedriver."""

    def __init__(self, address, folder):
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1280,800']
        options = dict(binary=BROWSER[0], args=flags, prefs={'download.default_directory': str(folder)})
        self.at = address + '/session'
        found = self.ask('', capabilities=dict(alwaysMatch={'goog:chromeOptions': options}))
        self.at += '/' + found['sessionId']

    def ask(self, command, **values):
        request = urllib.request.Request(self.at + command, json.dumps(values).encode(), method='POST')
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)['value']

    def run(self, script):
        return self.ask('/execute/sync', script=script, args=[])

    def press(self, keys):
        keys = [dict(type=kind, value=key) for key in keys for kind in ('keyDown', 'keyUp')]
        self.ask('/actions', actions=[dict(type='key', id='keys', actions=keys)])


ENTER, LEFT, RIGHT, BACKSPACE, DELETE, DOWN = '\ue007\ue012\ue014\ue003\ue017\ue015'


@pytest.fixture
def browser(tmp_path):
    if not all(BROWSER):
        pytest.skip('there is no Chromium with its driver here (Debian: chromium chromium-driver)')
    log = tmp_path / 'driver.log'
    with log.open('w') as file:
        driver = subprocess.Popen([BROWSER[1], '--port=0'], stdout=file, stderr=file)
    try:
        while not (port := re.search(r'started successfully on port (\d+)', log.read_text())):
            assert driver.poll() is None, log.read_text()
            time.sleep(0.05)
        browser = Browser('http://127.0.0.1:' + port[1], tmp_path)
        yield browser
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(browser.at, method='DELETE'), timeout=60)
    finally:
        driver.terminate()
        driver.wait()


def save(browser, path):
    """Clicks on the button that saves, and waits for the file."""
    browser.run("document.getElementById('save').click()")
    end = time.monotonic() + 30
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def test_keys_undo_reload_and_a_table_that_create_datasets_reads(world, browser, tmp_path):
    old = world.table.read_text(encoding='utf-8').splitlines()
    rows = list(csv.reader(old))
    (tmp_path / 'old').mkdir()
    with open(tmp_path / 'old' / 'my labels.csv', 'w', encoding='utf-16', newline='') as file:
        table = csv.writer(file, delimiter=';')
        table.writerows([['note', 'label', 'Filename', 'split'], *(['x;y', *row[1::-1], row[2]] for row in rows[1:])])
        table.writerow(['keep me', '', 'u00.png', ''])
        table.writerow(['', '', 'u01.png'])
    found, page = write(world, tmp_path / 'out', labels=str(tmp_path / 'old' / 'my labels.csv'))
    names, classes = [item['name'] for item in found['items']], found['classes']
    browser.ask('/url', url=page.as_uri())
    see = lambda: (browser.run('return state.at'), browser.run('return state.answers'))  # noqa: E731
    seen = browser.run("return document.getElementById('name').textContent")
    assert seen == names[0] and see() == (0, [None] * 20)

    browser.press(['2', ' ', ENTER, '0', '9'])
    guess = found['items'][2]['guess']
    assert see() == (4, [1, -2, guess, -1] + [None] * 16)
    browser.press([BACKSPACE, 'z'])
    assert see() == (2, [1, -2] + [None] * 18)
    browser.press([LEFT, LEFT, LEFT, '3', RIGHT, RIGHT, RIGHT])
    assert see() == (5, [2, -2] + [None] * 18)
    browser.ask('/refresh')
    assert see() == (5, [2, -2] + [None] * 18)
    browser.press(['z'])
    assert see() == (0, [1, -2] + [None] * 18)
    browser.press(['0', RIGHT, *'12312312312312312'])
    answers = see()[1]
    assert answers[:3] == [-1, -2, None] and None not in answers[3:]
    browser.press('1')
    assert browser.run("return document.getElementById('count').textContent") == '20 done'

    saved = tmp_path / 'my labels.csv'
    save(browser, saved)
    text = saved.read_text(encoding='utf-8-sig')
    checked = {name: classes[answer] for name, answer in zip(names, see()[1], strict=True) if answer >= 0}
    assert len(checked) == 18 and text.startswith('note;label;Filename;split\n')
    new = list(csv.reader(io.StringIO(text), delimiter=';'))
    assert new[1:25] == [['x;y', *row[1::-1], row[2]] for row in rows[1:]]
    # As in predictions.csv, no cell begins as a formula does.
    assert {os.path.normpath(row[2]): row[1].removeprefix("'") for row in new[25:] if row[1]} == checked
    assert any(row[1].startswith("'=") for row in new) and not any(row[1].startswith('=') for row in new[25:])
    assert new[25] == ['keep me', checked.get('u00.png', ''), 'u00.png', 'train' * ('u00.png' in checked)]
    assert all(row[3] == 'train' and not row[2].startswith('=') for row in new[27:])

    make(world.photos, saved, 'again', tmp_path / 'data')
    image = {name: pictures.convert(world.photos / name, (8, 12), 3).tobytes() for name in checked}
    images, labels = records.read(data_pair.locate_records(str(tmp_path / 'data'), 'again', 'train'))
    made = {pixels.tobytes(): classes[label] for pixels, label in zip(images, labels, strict=True)}
    assert len(made) == 18 + 18 and all(made[image[name]] == label for name, label in checked.items())


def test_all_rows_of_a_picture_get_its_class_also_where_it_was_skipped(world, browser, tmp_path):
    tasks = [{**row, 'was_cancelled': False} for row in read_table(world.table)]
    tasks += [dict(file='u%02d.png' % number, was_cancelled=number == 0) for number in (0, 1, 1)]
    (tmp_path / 'min.json').write_text(json.dumps(tasks))
    found, page = write(world, tmp_path / 'out', labels=str(tmp_path / 'min.json'))
    browser.ask('/url', url=page.as_uri())
    browser.press(ENTER * len(found['items']))
    save(browser, tmp_path / 'min.csv')
    plan = folders.plan_table(str(world.photos), str(tmp_path / 'min.csv'))
    checked = {item['name']: item['guess'] for item in found['items']}
    assert checked.items() <= {item.path: item.label for item in plan.parts['train']}.items()
    assert {'u00.png', 'u01.png'} <= set(checked)


def test_many_classes_are_chosen_by_typing(world, browser, tmp_path):
    _, page = write(world, tmp_path)
    text = page.read_text(encoding='utf-8')
    names = ['class %02d' % i for i in range(98)] + ['0 ways', '-z']
    text = re.sub(r'"classes": \[.*?\], "items"', '"classes": %s, "items"' % json.dumps(names), text)
    page.write_text(re.sub(r'"labels": \[.*?\]', '"labels": %s' % json.dumps(names), text))
    browser.ask('/url', url=page.as_uri())
    browser.press([*'ways', ENTER, *'CLASS 1', DOWN, DOWN, ENTER, DELETE, *'no such', ENTER])
    for kind in 'isComposing', 'repeat':  # An Enter that ends a word of an input method, or is held down.
        browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', %s: true}))" % kind)
    assert browser.run('return state.answers.slice(0, 4)') == [98, 12, -1, None]
    browser.press([*([BACKSPACE] * 8), *'-z', ENTER])
    assert browser.run('return state.answers.slice(0, 4)') == [98, 12, 99, None]
    save(browser, tmp_path / 'labels.csv')
    rows = read_table(tmp_path / 'labels.csv')
    assert [row['class'] for row in rows] == ['0 ways', 'class 12', '-z']
    assert list(rows[0]) == ['file', 'class', 'split']
