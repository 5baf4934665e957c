"""New files and folders, whole or not at all; JSON files; locks."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import stat
import sys
import tempfile
import uuid

from libml.utils import Error, escape, explain, refuse, warn

TAKEN, ADVICE = '%s exists already and is never overwritten: %s', 'remove it first, or choose another name or folder'
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # Of file systems without such locks.


@contextlib.contextmanager
def naming(path):
    """Sets the file name of an OSError that is raised inside: errors of read and write have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # Without a number, a name would hide the text.
            error.filename = path
        raise


@contextlib.contextmanager
def reading(path, encoding=None):
    """Opens a file of text, or of bytes without an encoding. A named pipe is read as an empty file, without waiting.

    Raises:
        OSError: as open does, or the path is that of a device, which may have no end.
    """
    mode = 'r' if encoding else 'rb'
    with (
        naming(path),
        open(path, mode, encoding=encoding, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file,
    ):
        if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, 'is no file', path)
        yield file


def read_chunks(path, size=1 << 20):
    """Yields the bytes of a file in pieces of `size`, the last one shorter; see reading."""
    with reading(path) as file:
        while chunk := file.read(size):
            yield chunk


def parse_json(path, take=lambda found: found, text='%s is not JSON: %s'):
    """Returns take(what a JSON file holds).

    Raises:
        utils.Error: it is not JSON, or `take` raises ValueError or TypeError; `text` gets the path and the reason.
    """
    try:
        with reading(path, 'utf-8-sig') as file:
            return take(json.load(file))
    except (ValueError, TypeError, RecursionError) as error:
        raise Error(text % (escape(path), escape(explain(error)))) from error


def read_json(path, default):
    """Returns what a JSON file holds; default where there is no file, or, with a warning, where it is not JSON."""
    try:
        return parse_json(path)
    except FileNotFoundError:
        return default
    except Error as error:
        print('Ignoring %s' % error, file=sys.stderr)
        return default


def write_text(path, text):
    """Writes a text file, whole or not at all; makes its folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with naming(path), replacing(path) as part, open(part, 'w', encoding='utf-8') as file:
        file.write(text)


def write_json(path, value):
    """Writes a JSON file, whole or not at all; makes its folder."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


@contextlib.contextmanager
def replacing(path):
    """Gives the name of a new file or folder beside `path`, to be renamed to `path` at the end.

    On an exception (Ctrl-C too) it is removed. A process that is killed leaves at most a *.part-<pid>-<random>, which
    nothing reads; the next call for the same path removes it. No two processes share one, on whatever hosts they run.

    Raises:
        utils.Error: the path is that of a device or a pipe, such as /dev/stdout: another file would take its place.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise Error('%s is no file, and is not replaced: choose another name' % escape(os.fspath(path)))
    discard_left(path)
    with _making_part(os.fspath(path), _make_ending()) as part:
        yield part
        os.replace(part, path)


@contextlib.contextmanager
def creating(*paths):
    """As `replacing`, if nothing has the names `paths` yet, for one file or folder, or for files that belong together.

    What is written is on the disk at the end. The files get their names in order, all or none: the last name says that
    all have theirs. If the process is killed between two names, the next call for the same paths, or `discard_left`,
    takes them back, where the file system has hard links: only so can it be sure whose files they are.

    Yields:
        the name of the new file, or a list of them if there are several paths.

    Raises:
        utils.Error: one of the paths exists already, at the beginning or at the end: nothing is overwritten.
    """
    paths = [os.path.abspath(path) for path in paths]
    check_free(*paths)
    ending = _make_ending()
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_making_part(path, ending)) for path in paths]
        yield parts if parts[1:] else parts[0]
        for part in parts:
            file = os.open(part, os.O_RDONLY)  # Of a folder, too.
            os.fsync(file)
            os.close(file)
        named = []
        try:
            for path in paths:
                _give_name(path, ending)
                named.append(path)
        except BaseException:
            for path in reversed(paths):
                if path in named or _are_one(path, path + ending):
                    _remove(path)
            raise
        for part in reversed(parts):  # Until now they show which files are this set's.
            with contextlib.suppress(OSError):
                os.remove(part)


def discard_left(*paths):
    """Removes what killed processes have left of what was to be made at `paths`, see `replacing` and `creating`.

    Of a set of files, that is also the first ones under their own names, if the last one has not got its name.
    """
    *others, last = map(os.path.abspath, paths)
    for part in _list_left(last):
        for path in others if not os.path.lexists(last) else ():
            if _are_one(path, path + part.removeprefix(last)):
                _remove(path)
        _remove(part)
    for path in others:
        for part in _list_left(path):
            _remove(part)


def check_free(*paths, advice=ADVICE):
    """Raises utils.Error, which ends with an advice, where one of the paths exists. First discards what is left."""
    discard_left(*paths)
    for path in reversed(paths):  # Who has the last file has all of them.
        refuse(os.path.lexists(path), TAKEN, escape(path), advice)


def _give_name(path, ending):
    """Names a file or folder, and never replaces what has got the name meanwhile; then utils.Error is raised.

    A file keeps its first name as well, where the file system has hard links.
    """
    part = path + ending
    try:
        if os.path.isdir(part):
            os.rename(part, path)  # Takes the place of an empty folder alone.
        else:
            os.link(part, path)
    except OSError as error:
        if os.path.lexists(path):  # Where the file system has no hard links, there is no better way to look.
            raise Error(TAKEN % (escape(path), ADVICE)) from error
        if os.path.isdir(part):
            raise
        os.rename(part, path)


def _are_one(*paths):
    """Returns whether two names are there and are hard links of one file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(*map(os.lstat, paths))
    return False


def _make_ending():
    return '.part-%d-%s%s' % (os.getpid(), _tag_machine(), uuid.uuid4().hex[:6])


@contextlib.contextmanager
def _making_part(path, ending):
    try:
        yield path + ending
    except BaseException:
        _remove(path + ending)
        raise


def _list_left(path):
    """Returns the names that killed processes have left beside a path, which `replacing` and `creating` gave them."""
    folder, name = os.path.split(os.path.abspath(path))
    with contextlib.suppress(OSError):
        return _find_left(folder, r'%s\.part-([0-9]{1,9})-%s[0-9a-f]{6}' % (re.escape(name), _tag_machine()))
    return []


@functools.cache
def _tag_machine():
    """Returns six digits that stand for this machine, or for a container on it, whose processes have their own ids."""
    try:
        space = os.readlink('/proc/self/ns/pid')
    except OSError:
        space = ''
    return hashlib.sha256((platform.node() + space).encode()).hexdigest()[:6]


def _find_left(folder, pattern):
    """Returns the paths in a folder that processes have left that run no more; the pattern's group is their number."""
    matches = (re.fullmatch(pattern, name) for name in os.listdir(folder))
    return [os.path.join(folder, match[0]) for match in matches if match and not is_running(int(match[1]))]


def _remove(path):
    """Removes a file, a folder or a link, if it is there and can be removed."""
    shutil.rmtree(path, ignore_errors=True)  # Not through a link.
    with contextlib.suppress(OSError):
        os.remove(path)


def refuse_link(path):
    """Raises utils.Error where a path that this program writes to, or removes, is a link to something else."""
    text = '%s is a link, and nothing is written through it: put what it leads to in its place'
    refuse(os.path.islink(path), text, escape(path))


@contextlib.contextmanager
def making_folder(folder):
    """Makes a folder unless it is there. On failure, removes the folder if it was newly made and is empty."""
    new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


@contextlib.contextmanager
def making_temporary():
    """Makes a folder for temporary files, and removes it in the end; and those that killed processes have left."""
    own = 'mixmatch-%s' % _tag_machine()
    for left in _find_left(tempfile.gettempdir(), r'%s-([0-9]{1,9})-\w+' % own):
        _remove(left)
    with tempfile.TemporaryDirectory(prefix='%s-%d-' % (own, os.getpid())) as folder:
        yield folder


def is_running(pid):
    """Returns whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def locking(path, refusal=''):
    """Holds a lock file, in which the name of this process stands meanwhile.

    Where the file system has no locks, a warning says so, and the name in the file decides: `process 7 on host` holds
    it if that process is on this machine and still runs.

    Args:
        refusal: how the error begins that names another process which holds the file; '': that process is waited for.

    Raises:
        utils.Error: another process holds the file, and is not waited for; or the path is a link.
    """
    refuse_link(path)
    with open(path, 'ab+', buffering=0) as file:
        with naming(path):
            file.seek(0)
            owner = file.read().decode(errors='replace').strip()
            if not _lock(file, owner, fcntl.LOCK_NB):
                refuse(refusal, '%s%s', refusal, owner or 'another process')
                print('Waiting for another process, which holds %s' % path, file=sys.stderr)
                _lock(file, owner, 0)
            file.truncate(0)
            file.write(b'process %d on %s\n' % (os.getpid(), os.fsencode(socket.gethostname())))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # The lock is released anyway when the process ends.
                file.truncate(0)


def _lock(file, owner, wait):
    """Locks an open file; returns whether no other process holds it. See locking; wait: fcntl.LOCK_NB to not wait."""
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(file, fcntl.LOCK_EX | wait)
            return True
        except (BlockingIOError, PermissionError):  # PermissionError: lockf may say so of a lock that is held.
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    text = 'this file system has no locks: let no other process work in that folder. If none does, remove %s'
    warn(text % file.name)
    match = re.fullmatch(r'process ([1-9]\d{0,8}) on (.*)', owner)
    here, pid = match and match[2] == socket.gethostname(), match and int(match[1])
    return not (here and pid != os.getpid() and is_running(pid))
