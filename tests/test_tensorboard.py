"""What TensorBoard's pages show of a run: the graph, the text, the images."""

import io
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import QUICK, make_dataset, make_model
from PIL import Image
from test_methods import METHODS

from ablation.ab_mixmatch import AblationMixMatch
from libml import sheet
from libml.running import folding, runs

PARTS = folding.SCOPES | {'evaluate', 'monitors'}


def find_scopes(definition):
    """Returns the nodes at the top of a graph's page; raises ValueError if the page's graph is none."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name='')
        assert all('/' in op.name for op in graph.get_operations())
    return {node.name.split('/')[0] for node in definition.node}


def test_the_graph_folds_into_what_the_paper_names(tmp_path):
    model = make_model(tmp_path)
    definition = model.trainer.fold_graph()
    assert find_scopes(definition) == PARTS
    names = {node.name: node for node in definition.node}
    assert {'inputs/x', 'inputs/y', 'inputs/labels', 'update/global_step'} <= set(names)
    edges = {(node.name.split('/')[0], source.split('/')[0]) for node in definition.node for source in node.input}
    assert ('guess_label', 'classify') in edges and ('classify', 'guess_label') not in edges
    kernels = [v.op.name for v in tf.trainable_variables() if v.op.name.endswith('kernel')]
    assert kernels and all(names[name].op == 'VarHandleOp' for name in kernels)  # Variables keep their names.
    called = {value.func.name for node in definition.node for value in node.attr.values()} - {''}
    assert called == {function.signature.name for function in definition.library.function}


@pytest.mark.parametrize('name', METHODS)
def test_the_graph_of_other_methods_folds_too(name, tmp_path):
    method, *_ = METHODS[name]
    params = {name: option.default for name, option in method.PARAMS.items()}
    params.update(filters=2, repeat=1, scales=1, batch=4)
    dataset = make_dataset()
    definition = method(str(tmp_path), dataset, nclass=dataset.nclass, **params).trainer.fold_graph()
    assert {'inputs', 'classify', 'update', 'evaluate'} <= find_scopes(definition) <= PARTS


def test_an_op_outside_of_the_parts_is_shown_with_the_first_that_takes_it():
    a = tf.constant(1.0, name='a')
    b = tf.add(a, a, name='b')
    with tf.name_scope('mixup'):
        c = tf.square(b, name='b')
    with tf.name_scope('losses'):
        d = tf.add(b, c, name='d')
    last = tf.add(d, 1.0, name='last')
    definition = folding.fold_graph(tf.get_default_graph(), {last.op: 'monitors'})
    assert {node.name: list(node.input) for node in definition.node} == {
        'mixup/a': [],
        'mixup/b_': ['mixup/a', 'mixup/a'],  # There is another mixup/b.
        'mixup/b': ['mixup/b_'],
        'losses/d': ['mixup/b_', 'mixup/b'],
        'monitors/last/y': [],
        'monitors/last': ['losses/d', 'monitors/last/y'],
    }


def read_values(run, name):
    """Returns the (step, value of a summary) of a run that have a field, in the order in which they were written."""
    found = []
    for path in runs.list_events(run):
        for event in tf.train.summary_iterator(path):
            found += [(event.step, value) for value in event.summary.value if value.HasField(name)]
    return found


def test_pages_of_text_and_images(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['my train.py', '--lr=3\udcff'])
    for nimg in (8, 12):
        with tf.Graph().as_default():
            model = make_model(tmp_path, **QUICK)
            model.train(nimg, 4)
    texts = [(step, value) for step, value in read_values(model.train_dir, 'tensor') if value.tag == 'start']
    assert [step for step, _ in texts] == [0, 8]
    text = texts[0][1].tensor.string_val[0].decode()
    lines = [line.split() for line in text.splitlines()]
    assert all(line.startswith('    ') for line in text.splitlines() if line.strip())  # Markdown for text as it is.
    assert (
        lines[0] == ["'my", "train.py'", "'--lr=3\\udcff'"]
        and ['lr', '0.002'] in lines
        and ['mixmode', 'xxy.yxy'] in lines
    )
    with model.graph.as_default():
        assert {v.op.name for v in tf.trainable_variables()} <= {line[0] for line in lines if line}
    images = read_values(model.train_dir, 'image')
    assert [step for step, _ in images] == [4, 8, 12]
    pages = [Image.open(io.BytesIO(value.image.encoded_image_string)) for _, value in images]
    assert {page.size for page in pages} == {(value.image.width, value.image.height) for _, value in images}
    corner = (sheet.TITLES, 0, sheet.TITLES + sheet.SIDE, 2 * sheet.SIDE)  # Pictures stay the same while bars move.
    assert len({page.crop(corner).tobytes() for page in pages}) == 1
    assert len({page.tobytes() for page in pages}) == 3


def test_the_sheet_changes_no_update(tmp_path, monkeypatch):
    found = []
    for build in (AblationMixMatch.build_sheet, lambda model: None):
        monkeypatch.setattr(AblationMixMatch, 'build_sheet', build)
        with tf.Graph().as_default():
            model = make_model(os.path.join(tmp_path, str(len(found))), **QUICK)
            model.train(8, 4)
            with model.trainer.opening_session() as session, model.setting.hold(model.train_dir) as held:
                model.trainer.checkpoints.restore(session, held)
                found.append(session.run(tf.trainable_variables()))
    assert all(map(np.array_equal, *found))


@pytest.mark.parametrize('params, devices', [(dict(w_match=0.0), 1), (dict(batch=6), 2)])
def test_no_sheet_without_guesses_or_on_several_devices(params, devices, tmp_path):
    assert make_model(tmp_path, devices=devices, **QUICK, **params).build_sheet() is None
