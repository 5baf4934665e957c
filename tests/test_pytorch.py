"""The update in PyTorch beside which the benchmark measures ours is the same mathematics. Needs PyTorch."""

import importlib.util

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import command, make_model, variables

THEIRS = """
import sys, types
import numpy as np, torch
from scripts.pytorch import update as theirs

given = dict(np.load(sys.argv[1]))
o = types.SimpleNamespace(**{name: value.item() for name, value in given.items() if not value.ndim})
network = theirs.make_network(o.colors, o.nclass, o.scales, o.filters, o.repeat)
turn = lambda value, *axes: np.transpose(value, axes) if value.ndim == 4 else value.T
with torch.no_grad():
    for i, parameter in enumerate(network.parameters()):
        parameter.copy_(torch.tensor(turn(given['weight%d' % i], 3, 2, 0, 1)))
draws = ((torch.tensor(m), torch.tensor(partner).long()) for m, partner in zip(given['m'], given['partner']))
x, y, label = (torch.tensor(given[name]) for name in ('x', 'y', 'label'))
update = theirs.make_update(network, x, y, label, o, draw=lambda n, beta: next(draws))
losses = [[float(loss) for loss in update()] for _ in given['m']]
weights = {'weight%d' % i: turn(w.detach().numpy(), 2, 3, 1, 0) for i, w in enumerate(network.parameters())}
moving = {'moving%d' % i: b.numpy() for i, b in enumerate(b for b in network.buffers() if b.ndim)}
np.savez(sys.argv[1], losses=losses, **weights, **moving)
"""


@pytest.mark.skipif(not importlib.util.find_spec('torch'), reason='needs PyTorch')
def test_three_updates_have_the_losses_weights_and_averages_of_ours(tmp_path, draws):
    # One stage: to halve a picture's sides, TensorFlow pads one side of it, PyTorch both.
    model = make_model(tmp_path, warmup_kimg=0, w_match=3, repeat=2, filters=4, batch=6)
    p, random = model.params, np.random.RandomState(0)
    x, y = (random.uniform(-1, 1, [*n, p.batch, *model.dataset.shape]).astype(np.float32) for n in ([], [p.nu]))
    label, weights = random.randint(0, p.nclass, p.batch), model.weights()
    feed = {model.ops.x: x, model.ops.y: y.swapaxes(0, 1), model.ops.label: label}
    fetches = [list(model.ops.losses.values()), draws['m'][0], draws['partner'][0], model.ops.train_op]
    with model.trainer.opening_session() as session:
        given = {'weight%d' % i: value for i, value in enumerate(session.run(weights))}
        losses, m, partner, _ = zip(*[session.run(fetches, feed) for _ in range(3)], strict=True)
        ours = variables(session)
    file = tmp_path / 'update.npz'
    given.update(p, x=x, y=y, label=label, m=m, partner=partner, colors=x.shape[-1], precision='float32')
    np.savez(file, **given)
    done = command('-c', THEIRS, file)
    assert done.returncode == 0, done.stderr
    theirs = np.load(file)
    np.testing.assert_allclose(theirs['losses'], losses, rtol=1e-3)
    for i, variable in enumerate(weights):
        if 'conv2d' in variable.op.name and variable.op.name.endswith('bias'):
            continue  # Batch norm follows, so that the gradient is rounding, which Adam makes large.
        np.testing.assert_allclose(theirs['weight%d' % i], ours[variable.op.name], atol=2e-3, err_msg=variable.op.name)
    moving = [v.op.name for v in tf.global_variables() if 'moving_' in v.op.name]
    for i, name in list(enumerate(moving))[1::2]:  # The variances: those biases are in the means.
        np.testing.assert_allclose(theirs['moving%d' % i], ours[name], rtol=1e-4, err_msg=name)
