"""Checkpoints: found, checked, read, written and removed. Imports utils only.

A checkpoint is `model.ckpt-<step, 10 digits>.index` and `.data-...` beside it; its path without the ending is its
prefix, which is what these functions take and return.
"""

import contextlib
import errno
import glob
import os
import re
import sys
import tempfile

import tensorflow.compat.v1 as tf

from libml import utils

NAME = 'model.ckpt'
NOTE = '.note.json'  # Behind a prefix: what the loop needs to go on exactly, besides the variables.
PATTERN = re.compile(re.escape(NAME) + r'-(\d+)\.index')
ASIDE = 'damaged-'  # Before the name of a damaged checkpoint's files.
UNFINISHED = re.compile(r'.*\.tempstate\d+|checkpoint\.tmp\w+|.*\.part-[\w.-]+')
CHUNK = 1 << 22  # Bytes read at a time.


class Damaged(utils.Error):
    """A checkpoint is cut, incomplete or fails a checksum: what was saved in it is lost."""


# --- Names ---


def find(folder):
    """Returns the prefixes of the checkpoints in a folder, oldest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = sorted((int(match[1]), name) for name in names if (match := PATTERN.fullmatch(name)))
    return [os.path.join(folder, name.removesuffix('.index')) for _, name in found]


def step(ckpt):
    """Returns the global step (in images) in a checkpoint's name."""
    return int(ckpt.rsplit('-', 1)[1])


def resolve(path):
    """Returns the prefix of the checkpoint that a user means.

    Args:
        path: a prefix; a checkpoint's .index or .data file; or a run's folder, or its tf folder, for the newest one.

    Raises:
        utils.Error: there is no such checkpoint.
    """
    path = utils.expand(path)
    if os.path.isdir(path):
        found = find(path) or find(os.path.join(path, 'tf'))
        if not found:
            raise utils.Error('%s holds no whole checkpoint: name a run, or one of its checkpoints' % path)
        return found[-1]
    ckpt = re.sub(r'\.(index|data-\d{5}-of-\d{5})$', '', path)
    if not os.path.isfile(ckpt + '.index'):
        raise utils.Error('%s is not a whole checkpoint: there is no file %s.index' % (path, ckpt))
    return ckpt


def files(ckpt):
    """Returns the paths of a checkpoint's files, the index last."""
    return sorted(glob.glob(glob.escape(ckpt) + '.*'))


@contextlib.contextmanager
def plain(ckpt):
    """Gives a name of a checkpoint that TensorFlow does not take for a pattern, as it takes `[`, `*`, `?` and `\\`."""
    folder, name = os.path.split(os.path.abspath(ckpt))
    if not re.search(r'[][*?\\]', folder):
        yield ckpt
        return
    with tempfile.TemporaryDirectory() as place:
        link = os.path.join(place, 'tf')
        os.symlink(folder, link)
        yield os.path.join(link, name)


# --- Reading ---


def check(ckpt):
    """Reads a checkpoint through, checksums included.

    Raises:
        Damaged: it is certainly damaged.
        utils.Error: it cannot be read now; what is in it may be whole.
    """
    if not os.path.isfile(ckpt + '.index'):
        raise utils.Error('%s is not a whole checkpoint: there is no file %s.index' % (ckpt, ckpt))
    for _ in range(2):  # What goes wrong only once is no damage.
        read_through(ckpt)
        error = failure(ckpt)
        if not error:
            return
    if any(os.strerror(number) in str(error) for number in errno.errorcode if number != errno.ENOENT):
        raise unreadable(ckpt, error) from error
    raise Damaged('%s is not a whole checkpoint: %s' % (ckpt, utils.reason(error))) from error


def read_through(ckpt):
    """Reads the bytes of a checkpoint's files. TensorFlow's reader does not tell damage from a disk that fails."""
    for path in files(ckpt):
        try:
            with open(path, 'rb', buffering=0) as file:
                position = 0
                while chunk := os.pread(file.fileno(), CHUNK, position):
                    position += len(chunk)
        except OSError as error:
            raise unreadable(ckpt, error) from error


def failure(ckpt):
    """Returns the exception with which TensorFlow's reader ends, None where it reads all tensors."""
    try:
        with plain(ckpt) as path:
            reader = tf.train.load_checkpoint(path)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, LookupError, RuntimeError) as error:  # A cut file is an IndexError.
        return error
    return None


def unreadable(ckpt, error):
    """Returns the utils.Error of a checkpoint that cannot be read, though it may be whole."""
    return utils.Error(
        '%s cannot be read (%s): nothing was changed; once it can, the same command goes on from it'
        % (ckpt, utils.reason(error))
    )


def newest_whole(folder):
    """Returns the newest whole checkpoint of a folder, None where there is none; and the errors of damaged newer ones.

    Raises:
        utils.Error: a checkpoint cannot be read, and may be whole.
    """
    damage = []
    for ckpt in reversed(find(folder)):
        try:
            check(ckpt)
            return ckpt, damage
        except Damaged as error:
            damage.append(error)
    return None, damage


def whole(path):
    """Returns the prefix of the whole checkpoint that a user means; of a folder, the newest one.

    Damaged newer checkpoints of a folder are passed over, and told of on stderr.

    Args:
        path: see `resolve`.

    Raises:
        utils.Error: there is no whole checkpoint there, or it cannot be read.
    """
    ckpt = resolve(path)
    if not os.path.isdir(utils.expand(path)):
        check(ckpt)
        return ckpt
    found, damage = newest_whole(os.path.dirname(ckpt))
    for error in damage:
        print('Passing over a damaged checkpoint: %s' % error, file=sys.stderr)
    if not found:
        raise utils.Error('%s holds no whole checkpoint: all of them are damaged' % path)
    return found


def read(ckpt):
    """Returns what a whole checkpoint holds, {variable name: array}."""
    with plain(ckpt) as path:
        reader = tf.train.load_checkpoint(path)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def check_fits(ckpt, variables):
    """Raises utils.Error where a whole checkpoint lacks a variable, or has it in another shape or type."""
    with plain(ckpt) as path:
        reader = tf.train.load_checkpoint(path)
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for variable in variables:
        name, needed = variable.op.name, '%s %s' % (variable.dtype.base_dtype.name, variable.shape)
        held = '%s %s' % (types[name].name, tf.TensorShape(shapes[name])) if name in shapes else 'none'
        if held != needed:
            raise utils.Error('%s does not fit: as %s the model needs %s, it holds %s' % (ckpt, name, needed, held))


# --- Writing ---


class Checkpoints:
    """The checkpoints of a graph's variables in one folder.

    Args:
        folder: where they are.
    """

    def __init__(self, folder):
        self.folder = folder
        self.variables = tf.global_variables()
        self.saver = tf.train.Saver(self.variables, max_to_keep=None, save_relative_paths=True)
        self.last = ''  # What the variables were last restored from, or saved to.

    def restore(self, session, ckpt):
        """Takes all variables from a whole checkpoint; raises utils.Error where it does not fit."""
        check_fits(ckpt, self.variables)
        with plain(ckpt) as path:
            self.saver.restore(session, path)
        self.last = ckpt

    def resume(self, session, init_ckpt=''):
        """Restores the newest whole checkpoint, or else init_ckpt where it is given.

        Damaged newer checkpoints are renamed: nothing overwrites them.

        Raises:
            utils.Error: a checkpoint cannot be read, or does not fit.
        """
        ckpt, damage = newest_whole(self.folder)
        for error, bad in zip(damage, reversed(find(self.folder)), strict=False):
            put_aside(bad)
            print('Going on without a damaged checkpoint, which is kept as %s*: %s' % (ASIDE, error))
        if not ckpt and init_ckpt:
            ckpt = resolve(init_ckpt)
            check(ckpt)
        if ckpt:
            self.restore(session, ckpt)
            print('Going on from %s' % ckpt)

    def note(self):
        """Returns what was saved beside the checkpoint that was restored last; None where nothing was."""
        return utils.read_json(self.last + NOTE, default=None) if self.last else None

    def save(self, session, at, keep, note):
        """Writes the checkpoint of a step and removes the oldest ones over `keep`.

        Args:
            session: tf.Session.
            at: int, the step.
            keep: int, checkpoints kept.
            note: what JSON can hold, saved beside the checkpoint.

        Raises:
            utils.Error: it cannot be written.
        """
        ckpt = os.path.join(self.folder, '%s-%010d' % (NAME, at))
        try:
            utils.write_json(ckpt + NOTE, note)
            with plain(ckpt) as path:
                self.saver.save(session, path, write_meta_graph=False)
        except (tf.errors.OpError, ValueError, OSError) as error:
            remove_unfinished(self.folder)  # It may be what fills the disk.
            raise unwritten(ckpt, error) from error
        self.last = ckpt
        for old in find(self.folder)[:-keep]:
            remove(old)


def put_aside(ckpt):
    """Renames the files of a damaged checkpoint, the index last, so that nothing finds or overwrites them."""
    folder, name = os.path.split(ckpt)
    number = len(glob.glob(os.path.join(glob.escape(folder), '%s*%s.index' % (ASIDE, name))))
    for path in files(ckpt):
        aside = '%s%s%s' % (ASIDE, '%d-' % number if number else '', os.path.basename(path))
        os.replace(path, os.path.join(folder, aside))


def remove(ckpt):
    """Removes the files of a checkpoint, the index last: what a killed removal leaves is found, and removed later."""
    for path in files(ckpt):
        os.remove(path)


def remove_unfinished(folder):
    """Removes the files that were half-written when a process ended. No other process may be writing there."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if UNFINISHED.fullmatch(name):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))


def unwritten(path, error):
    """Returns the utils.Error of a run that cannot write one of its files."""
    text = 'cannot write %s (%s): once it can, the same command goes on from the newest checkpoint'
    return utils.Error(text % (path, utils.reason(error)))
