"""What Label Studio exports, read as a table of labels: every way to name a picture, and what a file can have wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libml import utils
from libml.intake import labels


def label(image, *names, **more):
    """Returns a task with an annotation for each of some classes."""
    results = [[dict(type='choices', value={'choices': [name]})] for name in names]
    return dict(data={'image': image}, annotations=[dict(result=result, **more) for result in results])


def read(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return labels.read_labels(str(path))


def find(folder, *addresses, found=('a b.png', 'deep/cat.png', 'x/é.png')):
    return [labels.Index(str(folder), found).find(address, {})[0] for address in addresses]


def test_an_address_is_a_picture_in_the_folder(tmp_path):
    pics = tmp_path / 'my pics'
    local, here = '/data/local-files/?d=', str(pics).lstrip('/').replace(' ', '%20')
    assert find(pics, local + here + '/a%20b.png', local + '/' + here + '/deep/cat.png') == ['a b.png', 'deep/cat.png']
    assert find(pics, local + 'my%20pics/x/%C3%A9.png', local + 'x/%C3%A9.png') == ['x/é.png'] * 2  # Other roots.
    assert find(pics, local + 'mnt/copy/my%20pics/deep%5Ccat.png') == ['deep/cat.png']  # Of another machine.
    host = 'http://localhost:8080'
    uploads = [host + '/data/upload/12/0a1b2c3d-cat.png', '/data/upload/0a1b2c3d-cat.png', host + local + 'a b.png']
    assert find(pics, *uploads) == ['deep/cat.png', 'deep/cat.png', 'a b.png']
    others = [
        local + 'home/ann/cat.png',
        '/data/upload/12/cat.png',
        'http://x.org/cat.png',
        local + '../cat.png',
        local,
    ]
    assert find(pics, *others) == [None] * 5


def test_an_uploaded_name_is_that_of_one_picture_alone(tmp_path):
    found = labels.Index(str(tmp_path), ['cat.png', 'deep/cat.png']).find('/data/upload/3/0a1b2c3d-cat.png', {})
    assert found == (None, 'is the name of 2 pictures: say in which folder')


def test_a_choice_counts_and_not_the_class_that_the_task_came_with(tmp_path):
    task = {**label('a.png', 'cat'), 'data': {'image': 'a.png', 'class': 'dog', 'label': 'ant'}}
    for name, content in {
        'full.json': [task],
        'min.json': '\ufeff' + json.dumps([dict(task['data'], choice='cat')]),
        'x.csv': 'image,class,choice\na.png,dog,cat\n',
    }.items():
        assert [row.label for row in read(tmp_path / name, content)] == ['cat']


def test_skipped_and_empty_annotations_are_no_rows(tmp_path):
    tasks = [label('a.png', 'cat'), label('b.png', 'dog', was_cancelled=True), label('c.png'), label('d.png', 'dog')]
    tasks[3]['annotations'] += [dict(result=[]), dict(result=[dict(type='rating', value={'rating': 3})])]
    rows = read(tmp_path / 'x.json', tasks)
    expected = [('task 1, annotation 1', 'a.png', 'cat'), ('task 4, annotation 1', 'd.png', 'dog')]
    assert [row[:3] for row in rows] == expected
    rows = read(tmp_path / 'x.csv', 'choice,image,was_cancelled\ncat,a.png,False\ndog,b.png,True\n')
    assert [row.label for row in rows] == ['cat', '']


def test_annotations_that_contradict_name_the_picture(tmp_path):
    rows = read(tmp_path / 'x.json', [label('a.png', 'cat'), label('/data/local-files/?d=b.png', 'cat', 'dog')])
    words = r'x.json: task 2, annotation 1 and task 2, annotation 2 contradict each other on b.png'
    with pytest.raises(utils.Error, match=words):
        labels.match_rows('x.json', str(tmp_path), rows, ['a.png', 'b.png'], {}, False)


GOOD = label('a.png', 'cat')
BAD = {  # What is wrong: the content, and words of the line.
    'an object': ({}, 'the file is {}, but must be a list of objects'),
    'texts': (['a.png'], 'the file is ["a.png"], but must be'),
    'cut': ('[{"data": ', 'is not JSON'),
    'deep': ('[' * 100_000, 'is not JSON'),
    'two values': ('[][', 'is not JSON'),
    'data': ([GOOD, {**GOOD, 'data': 'a.png'}], 'task 2: data is "a.png", but must be an object'),
    'no data': ([dict(annotations=[])], 'task 1: data is null'),
    'annotations': ([{**GOOD, 'annotations': {'1': []}}], 'task 1: annotations is {"1": []}'),
    'result': ([{**GOOD, 'annotations': [dict(result=[1])]}], 'task 1, annotation 1: result is [1]'),
    'no result': ([{**GOOD, 'annotations': [{}]}], 'task 1, annotation 1: result is null'),
    'value': ([{**GOOD, 'annotations': [dict(result=[dict(type='choices')])]}], 'annotation 1: value is null'),
    'choices': ([label('a.png', 5)], 'annotation 1: choices is [5], but must be a list of names'),
    'two choices': (
        [{**GOOD, 'annotations': [dict(result=GOOD['annotations'][0]['result'] * 2)]}],
        'x.json, task 1, annotation 1: the class is a list, ["cat", "cat"]: give one class a row',
    ),
    'two choices, short': ([dict(image='a.png', choice={'choices': ['cat', 'dog']})], 'task 1: the class is a list'),
    'another name': ([dict(data={'url': 'a.png'}, annotations=GOOD['annotations'])], "0 columns named 'file'"),
    'an image that is none': ([label(None, 'cat')], 'task 1, annotation 1: has no file'),
    'a control character': ([label('a.png', '\x1b[31m')], 'x.json, task 1, annotation 1 holds the class'),
    'half a character': ('[{"image": "a.png", "choice": "\\ud800"}]', 'task 1 holds the class'),
    'no annotation': ([label('a.png')], 'x.json holds no choice'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_export_is_one_line_that_names_file_and_field(tmp_path, name):
    content, words = BAD[name]
    with pytest.raises(utils.Error) as error:
        read(tmp_path / 'x.json', content)
    text = str(error.value)
    assert words in text and str(tmp_path / 'x.json') in text and '\n' not in text and len(text) < 500


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ['data', 'annotations', 'result', 'value', 'choices', 'type', 'image', 'choice', 'was_cancelled']
    ), inner | st.just('choices'), max_size=4),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(tasks=st.lists(VALUES, max_size=3))
def test_any_json_is_a_table_or_one_line(tmp_path_factory, tasks):
    try:
        assert isinstance(read(tmp_path_factory.getbasetemp() / 'any.json', tasks), list)
    except utils.Error as error:
        assert '\n' not in str(error)
