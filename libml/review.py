"""The page on which a person corrects a run's guesses by eye: one file for any browser, review.html."""

import base64
import hashlib
import io
import itertools
import json
import os
import pathlib
import re

import numpy as np
from PIL import Image

from libml import records, trained, utils
from libml.intake import labels, pictures

NEW_TABLE = labels.Table(['file,class,split\n'], [1], ',', ['file', 'class', 'split'], [])
SIDE = 256  # Pixels of a thumbnail.
QUALITIES = 90, 75, 50, 25  # Of JPEG; the first that takes no more than LARGEST bytes.
LARGEST = 29_000  # As text, 500 of them take 19.3 MB.
BATCH = 4096  # Images of a dataset that are read at a time.


class Review:
    """What the page needs besides the guesses; it is read before the network works, as all of it can be wrong."""

    def __init__(self, classifier, root, found, unused, path='', data_dir=None):
        """Reads the dataset of a trained.Classifier, and the table; raises utils.Error if one of them is not right.

        root, found, unused: see predict.find_pictures; path: of the table, whose files are relative to root.
        """
        self.classifier, self.root, self.path = classifier, root, path
        self.known = set()  # Digests of the pictures that have a label in the dataset, those for testing among them.
        self.table = labels.read_table(path) if path else NEW_TABLE
        self.rows = labels.read_rows(path, self.table)
        index, self.where = labels.Index(root, found), {}  # {picture: numbers of its rows}; None: of all other rows.
        for number, row in enumerate(self.rows):
            self.where.setdefault(index.find(row.file, unused)[0], []).append(number)
        text = 'no row of %s names a picture in %s: give the folder that its files are relative to'
        utils.refuse(set(self.where) == {None}, text, utils.escape(path), utils.escape(root))
        # With --p_unlabeled, pictures that were left out have labels, too.
        dataset = trained.read_dataset(classifier.folder, {**classifier.args, 'p_unlabeled': ''}, data_dir)
        for images in dataset.sets.values():
            for batch, classes in images.batches(BATCH):
                self.known.update(map(pictures.hash_pixels, batch[classes != records.NO_CLASS]))

    def choose(self, paths, confidences, count, seed):
        """Returns the indices of at most `count` pictures: half of the lowest confidence, half at random, shuffled.

        paths, confidences: see write_page, of all that can be read. Raises utils.Error where none is left to check.
        """
        settled, family = self._find_settled(), self.classifier.family

        def iterate_new(order):
            order = [i for i in order if paths[i] not in settled]
            files = (os.path.join(self.root, paths[i]) for i in order)
            images = pictures.convert_all(files, family.shape[:2], family.colors, family.range)
            for i, image in zip(order, images, strict=True):
                if not isinstance(image, ValueError) and pictures.hash_pixels(image) not in self.known:
                    settled.add(paths[i])
                    yield i

        random = np.random.RandomState(seed)
        chosen = list(itertools.islice(iterate_new(np.argsort(confidences, kind='stable')), count - count // 2))
        chosen += itertools.islice(iterate_new(random.permutation(len(paths))), count // 2)
        utils.refuse(not chosen, 'no guess is left to check, as each picture has a label already: leave --review out')
        return random.permutation(chosen)

    def _find_settled(self):
        """Returns the set of the paths to which the table gives a class, or a group whose pictures are for testing."""
        testing = {row.group for row in self.rows if row.split == 'test'} - {''}
        settled = {number for number, row in enumerate(self.rows) if row.label or row.group in testing}
        return {path for path, numbers in self.where.items() if settled.intersection(numbers)}

    def write_page(self, page, paths, guesses, confidences):
        """Writes the page to a path.

        paths: list, the pictures to check, relative to the root; guesses, confidences: lists of the label and the
        confidence of each.
        """
        thumbnails = self._draw_thumbnails(os.path.join(self.root, path) for path in paths)
        items = [
            # A path that is relative to no folder of pictures means nothing to create_datasets.py.
            dict(name=path, file=labels.disarm(path if self.root else os.path.abspath(path)), guess=guess)
            | dict(confidence=round(confidence, 6), image=thumbnail, rows=self.where.get(path, []))
            for path, guess, confidence, thumbnail in zip(paths, guesses, confidences, thumbnails, strict=True)
        ]
        cells = [labels.disarm(name, "'") for name in self.classifier.classes]  # As in the table of guesses.
        content = dict(classes=self.classifier.classes, items=items, table=dict(self._describe_table(), labels=cells))
        content['key'] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        template = pathlib.Path(__file__).with_name('review.html').read_text(encoding='utf-8')
        text = json.dumps(content).replace('<', '\\u003c')  # No `</script>`, nor `<!--`, can stand in it.
        pathlib.Path(page).write_text(template.replace('{{content}}', text), encoding='utf-8')

    def _draw_thumbnails(self, paths):
        """Yields an `encode`d thumbnail of each picture; raises utils.Error where one has become unreadable."""
        paths, again = itertools.tee(paths)
        found = pictures.convert_all(again, SIDE, 3, self.classifier.family.range)
        for path, pixels in zip(paths, found, strict=True):
            if isinstance(pixels, ValueError):
                text = '%s could be read at first, and no more: let nothing write to the pictures meanwhile (%s)'
                raise utils.Error(text % (path, pixels))
            yield encode(pixels)

    def _describe_table(self):
        """Returns what the page needs of the table: its text, in pieces, and where the cells of a new row belong."""
        lines, ends, delimiter, columns, rows = self.table
        head = ''.join(lines[: ends[0]]).rstrip('\r\n') + (delimiter + 'split' if 'split' not in columns else '')
        columns = columns if 'split' in columns else [*columns, 'split']
        places = {name: columns.index(name) for name in ('file', 'class', 'split')}
        pieces = [''.join(lines[start:end]).rstrip('\r\n') for start, end in itertools.pairwise(ends)]
        kept = [name != labels.SKIPPED for name in columns]  # A picture that gets a class is not skipped any more.
        answered = [[cell * keep for cell, keep in zip(cells, kept, strict=False)] for _, cells in rows]
        newline = '\r\n' if lines[0].endswith('\r\n') else '\n'
        text = dict(head=head, rows=pieces, cells=answered, newline=newline, delimiter=delimiter)
        name = re.sub(r'\.json$', '.csv', os.path.basename(self.path) or 'labels.csv')
        return dict(name=name, width=len(columns), **text, **places)


def encode(pixels):
    """Returns a picture, uint8 [H, W, 3], as the data: URL of a JPEG."""
    for quality in QUALITIES:
        Image.fromarray(pixels).save(file := io.BytesIO(), 'JPEG', quality=quality)
        if file.tell() <= LARGEST:
            break
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()
