"""Checkpoints: found, checked, read, written and removed.

A checkpoint is `model.ckpt-<step, 10 digits>.index` and `.data-...` beside it; its path without the ending is its
prefix, which is what these functions take and return.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile

import tensorflow.compat.v1 as tf

from libml import files, utils

NAME = 'model.ckpt'
NOTE = '.note.json'  # Behind a prefix: what the loop needs to continue exactly, besides the variables.
ASIDE = 'damaged-'  # Before the name of a damaged checkpoint's files.
UNFINISHED = re.compile(r'.*\.tempstate\d+|checkpoint\.tmp\w+|.*\.part-[\w.-]+')
# What TensorFlow's reader says of damage: a checksum, or a file that is cut or missing.
DAMAGE = re.compile('checksum|sstable|corrupt|truncated|less bytes than requested|No such file', re.IGNORECASE)
# What TensorFlow's reader says of errors of the system, which are no damage.
SYSTEM = [os.strerror(number) for number in errno.errorcode if number != errno.ENOENT]
# What TensorFlow's reader raises. LookupError includes IndexError, which it raises for a file that is cut.
FAILURES = (tf.errors.OpError, ValueError, LookupError, RuntimeError)
UNUSUAL = re.compile(r'[][*?\\\ud800-\udfff]')  # What TensorFlow takes for a pattern, and what is not UTF-8.


class Damaged(utils.Error):
    """A checkpoint is cut, incomplete or fails a checksum: what was saved in it is lost."""


# --- Names ---


find, step = utils.find_checkpoints, utils.checkpoint_step  # There, beside the published find_latest_checkpoint.


def resolve(path):
    """Returns the prefix of the whole checkpoint that a user means.

    Args:
        path: a prefix; one of a checkpoint's files; or a run's folder, or its tf folder, for the newest whole one.

    Raises:
        utils.Error: there is no such checkpoint, or it is damaged, or it cannot be read.
    """
    path = utils.expand(path)
    if not os.path.isdir(path):
        ckpt = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
        read_through(ckpt)
        return ckpt
    ckpt, damage = find_newest_whole(path if find(path) else os.path.join(path, 'tf'))
    if not ckpt:
        why = next(iter(damage.values()), 'name a run, or one of its checkpoints')
        raise utils.Error('%s holds no whole checkpoint: %s' % (path, why))
    for error in damage.values():
        utils.warn('an older checkpoint is taken: %s' % error)
    return ckpt


def initial(folder, init_ckpt):
    """Returns the whole checkpoint that a new run begins with; '' if none is given, or `folder` has one already.

    Args:
        init_ckpt: see resolve, which says what is raised; '' for none.
    """
    return resolve(init_ckpt) if init_ckpt and not find(folder) else ''


def list_files(ckpt):
    """Returns the paths of a checkpoint's files, the index last."""
    folder, name = os.path.split(ckpt)
    names = [file for file in os.listdir(folder or '.') if file.startswith(name + '.')]
    return [os.path.join(folder, file) for file in sorted(names, key=lambda file: (file == name + '.index', file))]


@contextlib.contextmanager
def aliasing(path):
    """Gives a name by which TensorFlow finds a path. It takes `[`, `*`, `?` and `\\` for a pattern, and needs UTF-8.

    Args:
        path: of a file or folder, or a checkpoint's prefix, whose last part has none of these signs.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if not UNUSUAL.search(folder):
        yield os.path.join(folder, name)
        return
    with tempfile.TemporaryDirectory() as place:
        link = os.path.join(place, 'tf')
        os.symlink(folder, link)
        yield os.path.join(link, name)


# --- Reading ---


def read_through(ckpt):
    """Reads a checkpoint through, checksums included.

    Raises:
        Damaged: it is certainly damaged.
        utils.Error: there is none, or it cannot be read now; what is in it may be whole.
    """
    with opening(ckpt) as path:
        try:
            reader = tf.train.load_checkpoint(path)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
        except FAILURES as error:
            why = utils.explain(error).replace(path, ckpt)
            if not DAMAGE.search(why) or any(words in why for words in SYSTEM):
                raise
            raise Damaged('%s is not a whole checkpoint: %s' % (ckpt, why)) from error


@contextlib.contextmanager
def opening(ckpt, needed=None):
    """Copies a checkpoint to a temporary folder, and gives the prefix of the copy, for TensorFlow's reader.

    If a disk fails, TensorFlow's reader may crash, or report damage. Copying first reports a failing disk as such.

    Args:
        needed: what the checkpoint must hold, {variable: type and shape}, such as {'global_step': 'int64 ()'}.

    Raises:
        utils.Error: there is no checkpoint, it cannot be read now, or it lacks a variable or has another shape or type.
    """
    with tempfile.TemporaryDirectory() as place:
        try:
            paths = list_files(ckpt)
            for path in paths:
                shutil.copyfile(path, os.path.join(place, os.path.basename(path)))
        except (FileNotFoundError, NotADirectoryError):
            paths = []
        except OSError as error:
            raise unreadable_error(ckpt, error) from error
        if ckpt + '.index' not in paths:
            raise utils.Error('%s is not a whole checkpoint: there is no file %s.index' % (ckpt, ckpt))
        try:
            path = os.path.join(place, os.path.basename(ckpt))
            if needed:
                compare(ckpt, tf.train.load_checkpoint(path), needed)
            yield path
        except utils.Error:
            raise
        except FAILURES as error:
            raise unreadable_error(ckpt, error) from error


def unreadable_error(ckpt, error):
    """Returns the utils.Error of a checkpoint that cannot be read, though it may be whole."""
    return utils.Error(
        '%s cannot be read (%s). It may be whole, so nothing was changed: run the same command when it can be read'
        % (ckpt, utils.explain(error))
    )


def find_newest_whole(folder):
    """Returns the newest whole checkpoint of a folder, None where there is none; and {damaged newer one: error}.

    Raises:
        utils.Error: a checkpoint cannot be read, and may be whole.
    """
    damage = {}
    for ckpt in reversed(find(folder)):
        try:
            read_through(ckpt)
            return ckpt, damage
        except Damaged as error:
            damage[ckpt] = error
    return None, damage


def compare(ckpt, reader, needed):
    """Raises utils.Error unless a checkpoint's reader has the variables of `needed`, see `opened`."""
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name, kind in needed.items():
        held = '%s %s' % (types[name].name, tf.TensorShape(shapes[name])) if name in shapes else 'none'
        if held != kind:
            raise utils.Error('%s does not fit: as %s the model needs %s, it holds %s' % (ckpt, name, kind, held))


def read(ckpt, needed=None):
    """Returns variables of a whole checkpoint, {name: array}: those that are needed, see `opened`; None: all."""
    with opening(ckpt, needed) as path:
        reader = tf.train.load_checkpoint(path)
        return {name: reader.get_tensor(name) for name in needed or reader.get_variable_to_shape_map()}


def check_fits(ckpt, needed):
    """Raises utils.Error unless a whole checkpoint holds what is needed, see `opened`."""
    with opening(ckpt, needed):
        pass


# --- Writing ---


class Checkpoints:
    """The checkpoints of the current graph's variables in one folder."""

    def __init__(self, folder):
        self.folder = folder
        variables = tf.global_variables()
        self.needed = {v.op.name: '%s %s' % (v.dtype.base_dtype.name, v.shape) for v in variables}  # See opened.
        self.saver = tf.train.Saver(variables, max_to_keep=None, save_relative_paths=True)
        self.last = ''  # What the variables were last restored from, or saved to.

    def restore(self, session, ckpt):
        """Takes all variables from a whole checkpoint; raises utils.Error where it does not fit."""
        with opening(ckpt, self.needed) as path:
            self.saver.restore(session, path)
        self.last = ckpt

    def resume(self, session, init_ckpt=''):
        """Restores the newest whole checkpoint, or else init_ckpt where it is given; see newest_whole and restore.

        Damaged newer checkpoints are renamed: nothing overwrites them.
        """
        ckpt, damage = find_newest_whole(self.folder)
        for bad, error in damage.items():
            put_aside(bad)
            print('Continuing without a damaged checkpoint, which is kept as %s*: %s' % (ASIDE, error))
        if not ckpt and init_ckpt:
            ckpt = resolve(init_ckpt)
        if ckpt:
            self.restore(session, ckpt)
            print('Continuing from %s' % ckpt)

    @property
    def is_own(self):
        """Whether the variables were last restored from, or saved to, a checkpoint of this folder."""
        return os.path.dirname(self.last) == self.folder

    def note(self):
        """Returns what was saved beside the folder's checkpoint that was restored; None where nothing was."""
        return files.read_json(self.last + NOTE, default=None) if self.is_own else None

    def save(self, session, at, keep, note):
        """Writes the checkpoint of step `at` and removes the oldest ones over `keep`.

        Args:
            note: what JSON can hold, saved beside the checkpoint.

        Raises:
            utils.Error: it cannot be written.
        """
        ckpt = os.path.join(self.folder, '%s-%010d' % (NAME, at))
        try:
            files.write_json(ckpt + NOTE, note)
            with aliasing(ckpt) as path:
                self.saver.save(session, path, write_meta_graph=False)
        except (tf.errors.OpError, ValueError, OSError) as error:
            remove_unfinished(self.folder)  # The half-written file may be what fills the disk.
            raise unwritten_error(ckpt, error) from error
        self.last = ckpt
        for old in find(self.folder)[:-keep]:
            remove(old)


def put_aside(ckpt):
    """Renames the files of a damaged checkpoint, the index last, so that nothing finds or overwrites them."""
    folder, name = os.path.split(ckpt)
    number = sum(file.startswith(ASIDE) and file.endswith(name + '.index') for file in os.listdir(folder))
    before = '%s%d-' % (ASIDE, number) if number else ASIDE
    for path in list_files(ckpt):
        os.replace(path, os.path.join(folder, before + os.path.basename(path)))


def remove(ckpt):
    """Removes the files of a checkpoint, the index last: what a killed removal leaves is found, and removed later."""
    for path in list_files(ckpt):
        os.remove(path)


def remove_unfinished(folder):
    """Removes the files that were half-written when a process ended. No other process may be writing there."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if UNFINISHED.fullmatch(name):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))


def unwritten_error(path, error):
    """Returns the utils.Error of a run that cannot write one of its files."""
    text = 'cannot write %s (%s): once it can, the same command continues from the newest checkpoint'
    return utils.Error(text % (path, utils.explain(error)))
