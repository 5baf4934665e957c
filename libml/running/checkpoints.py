"""Checkpoints: found, checked, read, written and removed.

A checkpoint is `model.ckpt-<step, 10 digits>.index` and `.data-...` beside it; its path without the ending is its
prefix, which is what these functions take and return. A note beside it holds the SHA-256 of these files, which says
whether they are whole. Published code and older runs left no SHA-256: there, TensorFlow's own checksums say it.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil

import tensorflow.compat.v1 as tf

from libml import files, utils

NAME = 'model.ckpt'
NOTE = '.note.json'  # Behind a prefix: the SHA-256 of the files, and what the loop needs to continue exactly.
ASIDE = 'damaged-'  # Before the name of a damaged checkpoint's files.
ENDING = r'\.(index|meta|data-\d{5}-of-\d{5}|note\.json)'  # Of a checkpoint's files, behind its prefix.
PART = r'\.part-\d+-[0-9a-f]{12}'  # Behind the names of unfinished files, see files.replacing.
UNFINISHED = re.compile(
    r'(args\.json|model\.ckpt-\d+\.note\.json)%s|model\.ckpt-\d+\..*\.tempstate\d+|checkpoint\.tmp\w+' % PART
)
# What TensorFlow's reader raises. LookupError includes IndexError, which it raises for a file that is cut.
FAILURES = (tf.errors.OpError, ValueError, LookupError, RuntimeError)
UNUSUAL = re.compile(r'[][*?\\\ud800-\udfff]')  # What TensorFlow takes for a pattern, and what is not UTF-8.


class Damaged(utils.Error):
    """A checkpoint is cut, incomplete or fails a checksum: what was saved in it is lost."""


# --- Names ---


find, step = utils.find_checkpoints, utils.checkpoint_step  # There, beside the published find_latest_checkpoint.


def resolve(path):
    """Returns the whole checkpoint that a user means, as Held.

    Args:
        path: a prefix; one of a checkpoint's files; or a run's folder, or its tf folder, for the newest whole one.

    Raises:
        utils.Error: there is no such checkpoint, or it is damaged, or it cannot be read.
    """
    path = utils.expand(path)
    if not os.path.isdir(path):
        return Held(re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path))
    held, damage = find_newest_whole(path if find(path) else os.path.join(path, 'tf'))
    if not held:
        why = next(iter(damage.values()), 'name a run, or one of its checkpoints')
        raise utils.Error('%s holds no whole checkpoint: %s' % (path, why))
    for error in damage.values():
        utils.warn('an older checkpoint is taken: %s' % error)
    return held


def list_files(*ckpts):
    """Returns the paths of the files of checkpoints of one folder, the index of each last."""
    folder, own = os.path.dirname(ckpts[0]), set(map(os.path.basename, ckpts))
    matches = (re.fullmatch('(.*)' + ENDING, name) for name in os.listdir(folder or '.'))
    found = [(match[1], match[2] == 'index', match[0]) for match in matches if match and match[1] in own]
    return [os.path.join(folder, name) for _, _, name in sorted(found)]


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
    with files.making_temporary() as place:
        link = os.path.join(place, 'tf')
        os.symlink(folder, link)
        yield os.path.join(link, name)


# --- Reading ---


class Held(contextlib.AbstractContextManager):
    """A whole checkpoint, copied to the folder for temporary files until `close`. TensorFlow's reader reads the copy.

    That reader may crash on a failing disk, or report damage. Copying first reports a failing disk as such. Where no
    copy can be made, the checkpoint is read where it is.

    Attributes:
        ckpt: the checkpoint's prefix.
        path: the prefix that TensorFlow reads.
    """

    def __init__(self, ckpt):
        """Copies a checkpoint and checks it, by its note or else by the checksums in it.

        Raises:
            Damaged: it is damaged.
            utils.Error: there is none, or it cannot be read now; what is in it may be whole.
        """
        self.ckpt = self.path = ckpt
        why = ''
        with contextlib.ExitStack() as stack:
            try:
                self.path, found = stack.enter_context(copying(ckpt))
                saved = read_note(ckpt).get('sha256')
                if saved and isinstance(saved, dict):
                    changed = [ckpt + ending for ending in saved if found.get(ending) != saved[ending]]
                    why = ', '.join('%s is missing, or not as it was saved' % path for path in changed)
                else:
                    reader = tf.train.load_checkpoint(self.path)
                    for name in reader.get_variable_to_shape_map():  # One at a time: all may not fit in memory.
                        reader.get_tensor(name)
            except (FileNotFoundError, NotADirectoryError):
                text = '%s is not a whole checkpoint: there is no file %s.index'
                raise utils.Error(text % (ckpt, ckpt)) from None
            except OSError as error:
                text = '%s cannot be read (%s). It may be whole, so nothing was changed: run the same command when '
                raise utils.Error((text + 'it can be read') % (ckpt, utils.explain(error))) from error
            except FAILURES as error:
                why = utils.explain(error).replace(self.path, ckpt)
            if why:
                raise Damaged('%s is not a whole checkpoint: %s' % (ckpt, why))
            self.close = stack.pop_all().close

    def __exit__(self, *_):
        self.close()

    def read(self, needed=None):
        """Returns variables, {name: array}: those that are needed, see `compare`; None: all."""
        if needed:
            self.compare(needed)
        reader = tf.train.load_checkpoint(self.path)
        return {name: reader.get_tensor(name) for name in needed or reader.get_variable_to_shape_map()}

    def compare(self, needed):
        """Raises utils.Error unless the checkpoint holds what is needed.

        Args:
            needed: {variable: type and shape}, such as {'global_step': 'int64 ()'}.
        """
        reader = tf.train.load_checkpoint(self.path)
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        for name, kind in needed.items():
            held = '%s %s' % (types[name].name, tf.TensorShape(shapes[name])) if name in shapes else 'none'
            text = '%s does not fit: as %s the model needs %s, it holds %s'
            utils.refuse(held != kind, text, self.ckpt, name, kind, held)


@contextlib.contextmanager
def copying(ckpt):
    """Copies a checkpoint; the copy is removed in the end.

    Gives the prefix of the copy, or its own where there is no room for one; and what `digest` returns.

    Raises:
        OSError: a file cannot be read, or there is no index.
    """
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(files.making_temporary())
            path, found = os.path.join(place, os.path.basename(ckpt)), digest(ckpt, place)
        except OSError as error:
            if str(error.filename).startswith(ckpt):
                raise
            stack.close()
            path, found = stack.enter_context(aliasing(ckpt)), digest(ckpt)
        yield path, found


def digest(ckpt, place=None):
    """Reads a checkpoint's files but the note through, and copies them to a folder `place` if one is given.

    Returns:
        {ending, such as '.index': SHA-256, hexadecimal}.

    Raises:
        OSError: a file cannot be read, there is no index, or a copy cannot be written; its `filename` says which.
    """
    paths = [path for path in list_files(ckpt) if path != ckpt + NOTE]
    if ckpt + '.index' not in paths:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ckpt + '.index')
    if place and sum(map(os.path.getsize, paths)) > shutil.disk_usage(place).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)  # Others need the room it would fill in vain.
    found = {}
    for path in paths:
        target, sha256 = os.path.join(place, os.path.basename(path)) if place else os.devnull, hashlib.sha256()
        with files.naming(target), open(target, 'wb') as copy:
            for chunk in files.read_chunks(path):
                sha256.update(chunk)
                copy.write(chunk)
        found[path.removeprefix(ckpt)] = sha256.hexdigest()
    return found


def read_note(ckpt):
    """Returns the note beside a checkpoint, dict(means, sha256); what is not there is missing.

    Means is what `Checkpoints.save` was given, and all that older notes hold. sha256 is what `digest` returned.
    """
    found = files.read_json(ckpt + NOTE, default={})
    return found if isinstance(found, dict) else dict(means=found)


def find_newest_whole(folder):
    """Returns the newest whole checkpoint of a folder, Held, None if there is none; and {damaged newer one: error}.

    Raises:
        utils.Error: a checkpoint cannot be read, and may be whole.
    """
    damage = {}
    for ckpt in reversed(find(folder)):
        try:
            return Held(ckpt), damage
        except Damaged as error:
            damage[ckpt] = error
    return None, damage


def read(ckpt, needed=None):
    """Returns variables of a whole checkpoint, {name: array}; see Held.read."""
    with Held(ckpt) as held:
        return held.read(needed)


# --- Writing ---


class Checkpoints:
    """The checkpoints of the current graph's variables in one folder."""

    def __init__(self, folder):
        self.folder = folder
        variables = tf.global_variables()
        self.needed = {v.op.name: '%s %s' % (v.dtype.base_dtype.name, v.shape) for v in variables}  # See Held.compare.
        self.saver = tf.train.Saver(variables, max_to_keep=None, save_relative_paths=True)
        self.last = ''  # What the variables were last restored from, or saved to.

    def restore(self, session, held):
        """Takes all variables from a checkpoint, Held; raises utils.Error where it does not fit."""
        held.compare(self.needed)
        self.saver.restore(session, held.path)
        self.last = held.ckpt

    @property
    def is_own(self):
        """Whether the variables were last restored from, or saved to, a checkpoint of this folder."""
        return os.path.dirname(self.last) == self.folder

    def read_means(self):
        """Returns the means that were saved beside the folder's checkpoint that was restored; None where none were."""
        return read_note(self.last).get('means') if self.is_own else None

    def save(self, session, at, keep, means):
        """Writes the checkpoint of step `at` and removes the oldest ones over `keep`.

        Args:
            means: what JSON can hold, saved beside the checkpoint.

        Raises:
            utils.Error: it cannot be written.
        """
        ckpt = os.path.join(self.folder, '%s-%010d' % (NAME, at))
        try:
            # A note is there before the checkpoint is, and gets the SHA-256 once the files are written.
            files.write_json(ckpt + NOTE, dict(means=means))
            with aliasing(ckpt) as path:
                self.saver.save(session, path, write_meta_graph=False)
            files.write_json(ckpt + NOTE, dict(means=means, sha256=digest(ckpt)))
        except (tf.errors.OpError, ValueError, OSError) as error:
            remove_unfinished(self.folder)  # The half-written file may be what fills the disk.
            raise unwritten_error(ckpt, error) from error
        self.last = ckpt
        if old := find(self.folder)[:-keep]:
            remove(*old)


def put_aside(ckpt):
    """Renames the files of a damaged checkpoint, the index last, so that nothing finds or overwrites them."""
    folder, name = os.path.split(ckpt)
    number = sum(file.startswith(ASIDE) and file.endswith(name + '.index') for file in os.listdir(folder))
    before = '%s%d-' % (ASIDE, number) if number else ASIDE
    for path in list_files(ckpt):
        os.replace(path, os.path.join(folder, before + os.path.basename(path)))


def remove(*ckpts):
    """Removes the files of checkpoints, the index last: what a killed removal leaves is found, and removed later."""
    for path in list_files(*ckpts):
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
