"""The steps of MixMatch for a few unlabelled pictures, drawn as one picture."""

import importlib.util
import os
import textwrap

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image, ImageDraw, ImageFont

from libml import layers, utils
from libml.data import DataSet

SIDE, BARS, LINE, GAP = 96, 150, 18, 14  # Pixels: a picture's longer side; bars' width; a line's height; a space.
TITLES = 130  # Pixels: width of the titles of rows.
MOST_NAMES = 20  # Classes whose names are listed below the rows.
FONT = 'mpl-data/fonts/ttf/DejaVuSans.ttf'  # Of matplotlib: it has the letters of more languages than Pillow's own.


class NotedMixMode(layers.MixMode):
    """A MixMode that keeps what it draws for the unlabelled side: `noted`, (m, partners); see MixMode.draw."""

    noted = None

    def draw(self, side, *args):
        """See MixMode."""
        found = super().draw(side, *args)
        if side == 'y':
            self.noted = found
        return found


class Sheet:
    """What MixMatch does with some pictures of its dataset: always the same ones, augmented and mixed in the same way.

    It belongs to the graph of its model, but to no update.

    Args:
        model: AblationMixMatch, its graph built, on one device.
        seed: int, chooses the pictures.
    """

    def __init__(self, model, seed=0):
        self.model, rng = model, np.random.default_rng(seed)
        shape, p = [None, *model.dataset.shape], model.params
        self.chosen = {}  # {name: (pixels uint8 [B, H, W, C], labels int32 [B])}.
        for name in ('labeled', 'unlabeled'):
            images = model.dataset.sets[name]
            numbers = rng.integers(len(images), size=p.batch)
            self.chosen[name] = images.gather(numbers), images.labels[numbers]
        with tf.name_scope('sheet'):
            self.pixels = {name: tf.placeholder(tf.uint8, shape) for name in self.chosen}
            self.steps = self.build()

    def build(self):
        """Builds the steps of the method on the pictures; returns a dict of tensors, each [B, ...], or lists of these.

        Returns:
            views, list of nu float32 [B, H, W, C]; predictions, list of nu float32 [B, nclass]; mean, guess float32
            [B, nclass]; and, of the first views, if they are mixed, m float32 [B], partner and mixed float32
            [B, H, W, C], partner_label and mixed_label float32 [B, nclass].
        """
        model, p, averages = self.model, self.model.params, {v.op.name: v for v in tf.global_variables()}

        def average(getter, name, *args, **kwargs):
            variable = getter(name, *args, **kwargs)
            return averages.get(name + utils.AVERAGE, variable)

        getter = average if p.use_ema_guess else None
        augment, key = model.dataset.augment, model.keys
        x = augment(self.pixels['labeled'], key('sheet'))
        views = [augment(self.pixels['unlabeled'], key('sheet')) for _ in range(p.nu)]
        logits = []  # As guess_label gets them.

        def classifier(*args, **kwargs):
            logits.append(model.classifier(*args, **kwargs))
            return logits[-1]

        guess = model.guess_label(views, classifier, p.T, getter=getter)
        found = dict(views=views, predictions=[tf.nn.softmax(v) for v in logits])
        found.update(mean=guess.p_model, guess=guess.p_target)
        mode = NotedMixMode(p.mixmode)
        label_x = tf.one_hot(self.chosen['labeled'][1], model.nclass)
        images, labels = [x, *views], [label_x] + [guess.p_target] * p.nu
        mixed_images, mixed_labels = mode(images, labels, [p.beta, p.beta], key('sheet'))
        if mode.noted:
            pool = {'x': slice(1), 'y': slice(1, None), 'xy': slice(None)}[layers.MIXES[p.mixmode][1][0]]
            m, partner = (v[: p.batch] for v in mode.noted)
            partner, partner_label = (tf.gather(tf.concat(v[pool], 0), partner) for v in (images, labels))
            found.update(m=m, partner=partner, partner_label=partner_label)
            found.update(mixed=mixed_images[1], mixed_label=mixed_labels[1])
        return found

    def compute(self, session: tf.Session) -> dict:
        """Returns what `build` describes, as arrays, and original uint8 [B, H, W, C] and label int32 [B]."""
        feed = {self.pixels[name]: pixels for name, (pixels, _) in self.chosen.items()}
        found = session.run(self.steps, {**feed, self.model.update_key: 0})
        return dict(found, original=self.chosen['unlabeled'][0], label=self.chosen['unlabeled'][1])

    def draw(self, session: tf.Session, number: int = 4) -> Image.Image:
        """Returns the picture for the first `number` pictures, by the present weights."""
        return draw(self.compute(session), self.model.dataset, self.model.params.T, number)


def list_rows(found: dict, T: float) -> list[tuple]:
    """Returns the rows of a sheet: (title, images or None, probabilities or None)."""
    rows = [('original', found['original'], None)]
    rows += [
        ('view %d' % (k + 1), *both) for k, both in enumerate(zip(found['views'], found['predictions'], strict=True))
    ]
    rows += [('mean of the\npredictions', None, found['mean']), ('sharpened,\nT = %g' % T, None, found['guess'])]
    if 'm' in found:
        rows += [('partner', found['partner'], found['partner_label']), ('mixed', found['mixed'], found['mixed_label'])]
    return rows


def draw(found: dict, dataset: DataSet, T: float, number: int) -> Image.Image:
    """Draws what `Sheet.compute` returned: a column for each of the first `number` pictures, a row for each step."""
    rows, number, names = list_rows(found, T), min(number, len(found['original'])), dataset.family.names
    height, width = LINE + SIDE + GAP, SIDE + BARS + 2 * GAP
    legend = 'Bars, from the left: %s' % ', '.join(names) if len(names) <= MOST_NAMES else ''
    lines = textwrap.wrap(legend, (TITLES + number * width) // 8)
    page = Image.new('RGB', (TITLES + number * width, len(rows) * height + len(lines) * LINE + GAP), 'white')
    pen = ImageDraw.Draw(page)
    # The package is not imported: that takes long, and fails where no folder can be written.
    (package,) = importlib.util.find_spec('matplotlib').submodule_search_locations
    pen.font = ImageFont.truetype(os.path.join(package, FONT), 12)
    for i, (title, images, labels) in enumerate(rows):
        top = i * height
        pen.text((TITLES - GAP, top + LINE + SIDE // 2), title, 'black', anchor='rm', align='right')
        for j in range(number):
            left = TITLES + j * width
            if images is not None:
                page.paste(make_picture(images[j]), (left, top + LINE))
            if labels is not None:
                draw_bars(pen, left + SIDE + GAP, top, labels[j], names)
            else:
                label = found['label'][j]
                text = 'class unknown' if label < 0 else 'class: %s' % names[label][:20]
                pen.text((left + SIDE + GAP, top + LINE + SIDE // 2), text, 'black', anchor='lm')
            if title == 'mixed':
                pen.text((left, top + 2), "λ' = %.2f" % found['m'][j], 'black')
    pen.text((TITLES, len(rows) * height), '\n'.join(lines), 'black')
    return page


def make_picture(image: np.ndarray) -> Image.Image:
    """Returns an image [H, W, C], uint8 or float32 in [-1, 1], as a picture whose longer side is about SIDE."""
    pixels = image if image.dtype == np.uint8 else np.round((image + 1) * 127.5).astype(np.uint8)
    picture = Image.fromarray(np.array(np.broadcast_to(pixels, [*pixels.shape[:2], 3])))
    picture.thumbnail((SIDE, SIDE))
    times = SIDE // max(picture.size)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def draw_bars(pen, left, top, p, names):
    """Draws a bar for each class of p, float32 [nclass], and the likeliest class above."""
    best, base = int(p.argmax()), top + LINE + SIDE
    pen.text((left, top + 2), '%s: %.0f %%' % (names[best][:18], 100 * p[best]), 'black')
    edges = np.linspace(left, left + BARS, len(p) + 1)
    for c, value in enumerate(p):
        box = (edges[c] + 1, base - value * SIDE, max(edges[c] + 1, edges[c + 1] - 1), base)
        pen.rectangle(box, 'darkorange' if c == best else 'steelblue')
    pen.line((left, base, left + BARS, base), 'black')
