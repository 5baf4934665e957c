"""Streams as functions of the position, augmentation against NumPy, the sets of a dataset."""

import fakes
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from libml import data, records, utils
from libml.family import Family

few = settings(max_examples=30, deadline=None)
FAMILY = Family(6, 5, 3, 4, mirror=True, shift=1)


def make_images(n=20, height=6, width=5, colors=3, nclass=4, seed=0):
    labels = np.random.RandomState(seed).randint(0, nclass, n)
    return data.Images(fakes.random_images(n, height, width, colors, seed), labels)


def everything(images):
    """Returns all pixels of some Images, uint8 [n, H, W, C]."""
    return images.gather(np.arange(len(images)))


def pull(dataset, limit=10**6):
    """Returns up to `limit` elements of a tf.data.Dataset, stacked: dict of arrays."""
    element = tf.data.make_one_shot_iterator(dataset).get_next()
    found = []
    with tf.Session(config=utils.get_config()) as session:
        try:
            while len(found) < limit:
                found.append(session.run(element))
        except tf.errors.OutOfRangeError:
            pass
    return {key: np.stack([x[key] for x in found]) for key in found[0]} if found else found


# --- Images ---


@pytest.fixture(params=['memory', 'disk'])
def both(request, tmp_path):
    """The same images, once in memory and once left on disk, with their pixels and labels."""
    images = make_images(23)
    path = str(tmp_path / 'x.tfrecord')
    records.write(path, zip(records.encode(everything(images)), images.labels, strict=True))
    limit = 10**9 if request.param == 'memory' else everything(images).nbytes - 1
    loaded = data.load(records.RecordFile(path), 4, images.shape, limit=limit)
    assert isinstance(loaded, data.StreamedImages) == (request.param == 'disk')
    return loaded, everything(images), images.labels


def test_images_give_what_was_written(both):
    images, pixels, labels = both
    assert (len(images), images.shape, images.labels.dtype) == (23, (6, 5, 3), np.int32)
    np.testing.assert_array_equal(images.gather(np.array([5, 0, 5])), pixels[[5, 0, 5]])
    np.testing.assert_array_equal(images.labels, labels)
    part = images.select(slice(3, None)).select(np.array([7, 1]))
    np.testing.assert_array_equal(everything(part), pixels[[10, 4]])
    np.testing.assert_array_equal(part.labels, labels[[10, 4]])
    assert part.groups.tolist() == [records.NO_GROUP] * 2
    assert len(images.select(slice(0))) == len(everything(images.select(slice(0)))) == 0
    batches = list(images.batches(10))
    assert [len(batch) for batch, _ in batches] == [10, 10, 3]
    for found, expected in zip(zip(*batches, strict=True), (pixels, labels), strict=True):
        np.testing.assert_array_equal(np.concatenate(found), expected)


def test_streams_do_not_depend_on_where_images_are(both):
    images, pixels, labels = both
    found = pull(data.make_stream(images, 8, seed=3, stream_id=1), 6)
    indices = data.draw_order(0, 48, 23, 3, 1)
    np.testing.assert_array_equal(found['image'].reshape(48, 6, 5, 3), pixels[indices])
    np.testing.assert_array_equal(found['label'].ravel(), labels[indices])


def test_a_damaged_picture_left_on_disk_is_named(tmp_path):
    pngs = records.encode(fakes.random_images(3, 6, 5, 3))
    pngs[1] = pngs[1][:45] + bytes(10) + pngs[1][55:]
    records.write(str(tmp_path / 'x'), zip(pngs, [0, 1, 2], strict=True))
    file = records.RecordFile(str(tmp_path / 'x'))
    file.gather([2, 0], (6, 5, 3))
    for use in lambda: data.load(file, 3, (6, 5, 3), limit=0), lambda: file.gather([2, 1, 0], (6, 5, 3)):
        with pytest.raises(utils.Error, match='x: record 1 has a picture that does not decode'):
            use()


def test_images_of_another_kind_are_refused():
    for pixels, labels in ((np.zeros([2, 3, 3, 1]), [0, 1]), (np.zeros([2, 3, 3, 1], np.uint8), [0])):
        with pytest.raises(ValueError):
            data.Images(pixels, labels)


# --- Order ---


@few
@given(n=st.integers(1, 50), seed=st.integers(0, 2**32 - 1), stream=st.integers(0, 9), epochs=st.integers(1, 4))
def test_each_epoch_is_the_permutation_of_its_seed(n, seed, stream, epochs):
    found = data.draw_order(0, n * epochs, n, seed, stream).reshape(epochs, n)
    for epoch in range(epochs):
        np.testing.assert_array_equal(found[epoch], np.random.RandomState([seed, stream, epoch]).permutation(n))


@few
@given(n=st.sampled_from([1, 7, 30, 5000]), start=st.integers(0, 20000), count=st.integers(1, 40))
def test_an_index_depends_on_its_position_alone(n, start, count):
    together = data.draw_order(start, count, n, 1, 0)
    assert together.tolist() == [int(data.draw_order(p, 1, n, 1, 0)[0]) for p in range(start, start + count)]


# --- Streams ---


def test_one_graph_can_start_its_stream_anywhere():
    images = make_images(20)
    whole = pull(data.make_stream(images, 8, 5, 0), 6)
    start = tf.placeholder(tf.int64, [])
    iterator = tf.data.make_initializable_iterator(data.make_stream(images, 8, 5, 0, start))
    element, label = map(iterator.get_next().get, ('image', 'label'))
    assert (element.shape.as_list(), element.dtype) == ([8, 6, 5, 3], tf.uint8)
    assert (label.shape.as_list(), label.dtype) == ([8], tf.int32)
    with tf.Session() as session:
        for done in (0, 3, 1):
            session.run(iterator.initializer, {start: 8 * done})
            for step in (done, done + 1):
                pixels, classes = session.run([element, label])
                np.testing.assert_array_equal(pixels, whole['image'][step])
                np.testing.assert_array_equal(classes, whole['label'][step])


def test_a_stream_of_nothing_is_an_error():
    with pytest.raises(utils.Error, match='no unlabelled images are left'):
        data.make_stream(make_images(0), 8, 5, 0)


def test_the_graph_does_not_hold_the_images():
    images = make_images(1000)
    tf.data.make_one_shot_iterator(data.make_stream(images, 8, 5, 0)).get_next()
    data.DataSet('x', FAMILY, dict.fromkeys(data.SETS, images)).test  # noqa: B018
    assert tf.get_default_graph().as_graph_def().ByteSize() < 50_000


# --- Augmentation ---


def augment(pixels, seed, mirror, shift):
    """Runs data.augment; returns float32 [n, H, W, C]."""
    images = tf.placeholder(tf.uint8, [None, *pixels.shape[1:]])
    with tf.Session(config=utils.get_config()) as session:
        return session.run(data.augment(images, tf.constant([seed, 7]), mirror, shift), {images: pixels})


def candidates(image, mirror, shift):
    """Returns {(mirrored, dy, dx): uint8 [H, W, C]}: all that augmentation may make of an image."""
    height, width, _ = image.shape
    found = {}
    for mirrored in range(1 + mirror):
        padded = np.pad(image[:, ::-1] if mirrored else image, ((shift, shift), (shift, shift), (0, 0)), 'reflect')
        for dy in range(2 * shift + 1):
            for dx in range(2 * shift + 1):
                found[mirrored, dy, dx] = padded[dy : dy + height, dx : dx + width]
    return found


@pytest.mark.parametrize(
    'height,width,colors,mirror,shift',
    [(8, 8, 1, False, 1), (9, 7, 3, True, 2), (7, 12, 3, True, 4), (6, 6, 3, True, 0), (6, 6, 3, False, 3)],
)
def test_augmented_images_are_crops_of_reflected_ones(height, width, colors, mirror, shift):
    pixels = fakes.random_images(400, height, width, colors)
    found = np.round((augment(pixels, 1, mirror, shift) + 1) * 127.5).astype(np.uint8)
    seen = []
    for image, result in zip(pixels, found, strict=True):
        matches = [key for key, crop in candidates(image, mirror, shift).items() if np.array_equal(crop, result)]
        assert matches
        seen.append(matches[0])
    # Every value of every draw turns up, each about as often as the others.
    for axis, values in enumerate((1 + mirror, 2 * shift + 1, 2 * shift + 1)):
        times = np.bincount([key[axis] for key in seen], minlength=values)
        assert len(times) == values and times.min() > 400 / values / 2 and times.max() < 400 / values * 2
    # The draws do not follow one another.
    if shift:
        assert abs(np.corrcoef(np.array(seen)[:, 1:].T)[0, 1]) < 0.2


def test_augmentation_is_a_function_of_the_seed():
    pixels = fakes.random_images(10, 8, 8, 3)
    first, again, other = (augment(pixels, seed, True, 2) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(1, 2, 3)).mean() > 0.5


def test_without_augmentation_pixels_are_only_scaled():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = (np.arange(256) * 2 / 255 - 1).reshape(1, 16, 16, 1)
    for found in augment(pixels, 0, False, 0), data.to_float(pixels):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert data.to_float(pixels).min() == -1 and data.to_float(pixels).max() == 1


@pytest.mark.parametrize('shift', [5, 9, -1])
def test_a_shift_beyond_the_image_is_an_error(shift):
    with pytest.raises(utils.Error, match='images of 6x5 cannot be shifted by %d pixels' % shift):
        data.augment(tf.zeros([1, 6, 5, 3], tf.uint8), [0, 0], False, shift)


# --- Statistics and weights ---


def test_mean_and_deviation_are_those_of_all_pixels():
    sets = make_images(30, seed=1), make_images(11, seed=2)
    mean, std = data.compute_mean_std(*sets)
    pixels = np.concatenate([data.to_float(everything(images)) for images in sets]).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), atol=1e-6)
    assert (mean.dtype, std.dtype) == (np.float32, np.float32)
    plain = data.Images(np.full([3, 2, 2, 1], 200, np.uint8), [0, 0, 0])
    assert data.compute_mean_std(plain)[1].tolist() == [1]  # Of a color that never changes.


def test_bad_weights_are_refused():
    for text in '', '1', '1,1,1', '1,x', '1,-1', '0,0', '1,nan', '1,inf', '1;1':
        with pytest.raises(utils.Error, match='2 comma-separated weights'):
            data.parse_weights(text, 2)
    with pytest.raises(utils.Error, match='some here have none'):
        data.thin(data.Images(np.zeros([2, 1, 1, 1], np.uint8), [0, -1]), np.ones(2))


@few
@given(labels=st.lists(st.integers(0, 2), max_size=60), weights=st.tuples(*[st.floats(0, 1)] * 2))
def test_classes_keep_their_share(labels, weights):
    images = data.Images(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), labels)
    weights = np.array([*weights, 1])
    first, again = data.thin(images, weights), data.thin(images, weights)
    kept = everything(first).ravel()
    np.testing.assert_array_equal(kept, everything(again).ravel())
    assert (np.diff(kept.astype(int)) > 0).all()
    np.testing.assert_array_equal(first.labels, np.array(labels, int)[kept])
    for label, weight in enumerate(weights):
        assert (first.labels == label).sum() == round(weight * labels.count(label))


# --- DataSet ---


def make_dataset(**options):
    sets = make_images(5, seed=1), make_images(300, seed=2), make_images(0), make_images(7, seed=4)
    return data.DataSet('x.1@5-0', FAMILY, dict(zip(data.SETS, sets, strict=True)), **options)


def test_evaluation_sets_go_once_through_unaugmented():
    dataset = make_dataset()
    for view, name in dict(eval_labeled='labeled', eval_unlabeled='unlabeled', test='test').items():
        found, images = pull(getattr(dataset, view)), dataset.sets[name]
        np.testing.assert_array_equal(found['image'], data.to_float(everything(images)))
        np.testing.assert_array_equal(found['label'], images.labels)
        assert (found['image'].dtype, found['label'].dtype) == (np.float32, np.int64)
    assert pull(dataset.valid) == []


@pytest.mark.parametrize('view,attribute', [('train_labeled', 'labeled'), ('train_unlabeled', 'unlabeled')])
def test_training_sets_are_endless_shuffled_and_augmented(view, attribute):
    dataset = make_dataset()
    images = dataset.sets[attribute]
    found = pull(getattr(dataset, view), 2 * len(images))
    if attribute == 'unlabeled':  # nu augmentations of each image, as in the published registry.
        assert found['image'].shape[1:] == (2, 6, 5, 3) and (found['label'][:, 0] == found['label'][:, 1]).all()
        assert not np.array_equal(found['image'][:, 0], found['image'][:, 1])
        found = {key: value[:, 1] for key, value in found.items()}
    for labels in np.split(found['label'], 2):
        assert sorted(labels) == sorted(images.labels) and labels.tolist() != images.labels.tolist()
    allowed = {crop.tobytes() for image in everything(images) for crop in candidates(image, True, 1).values()}
    pixels = np.round((found['image'] + 1) * 127.5).astype(np.uint8)
    assert all(image.tobytes() in allowed for image in pixels)
    assert len({image.tobytes() for image in pixels}) > 1.5 * len(images)  # Another draw in each epoch.


def test_a_dataset_is_described():
    dataset, white = make_dataset(), make_dataset(whiten=True)
    assert (dataset.height, dataset.width, dataset.colors, dataset.nclass) == (6, 5, 3, 4)
    assert (dataset.mean.tolist(), dataset.std.tolist()) == ([0] * 3, [1] * 3)
    mean, std = data.compute_mean_std(dataset.sets['labeled'], dataset.sets['unlabeled'])
    assert (white.mean.tolist(), white.std.tolist()) == (mean.tolist(), std.tolist())


@pytest.mark.parametrize('limit', [1, 4, 7, 10, 1000])
def test_equal_batches_hold_every_picture_once_in_order(limit):
    dataset = make_dataset()
    sets = [dataset.sets[name] for name in ('test', 'valid', 'labeled', 'valid')]  # There is nothing to validate.
    expected = np.concatenate([everything(images) for images in sets])
    batches = list(data.iterate_equal_batches(sets, limit))
    assert len(batches) == -(-len(expected) // limit)
    assert len({len(batch) for batch in batches}) == 1 and len(batches[0]) <= limit
    found = np.concatenate(batches)
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert len(found) - len(expected) < len(batches)
    assert not list(data.iterate_equal_batches([dataset.sets['valid']], limit))
