"""New files and folders, whole or not at all; JSON files."""

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import uuid

from libml.utils import Error


@contextlib.contextmanager
def naming(path):
    """Sets the file name of an OSError that is raised inside: errors of read and write have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def read_json(path, default):
    """Returns what a JSON file holds; default where there is no file, or, with a warning, where it is not JSON."""
    try:
        with naming(path), open(path, encoding='utf-8') as file:
            return json.load(file)
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError) as error:
        print('Ignoring %s, which is not JSON: %s' % (path, error), file=sys.stderr)
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
    nothing reads. No two processes share one, on whatever hosts they run.
    """
    part = '%s.part-%d-%s' % (path, os.getpid(), uuid.uuid4().hex[:12])  # Containers may share a pid.
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


@contextlib.contextmanager
def creating(path):
    """As `replacing`, if nothing has the name `path` yet; what is written is on the disk at the end.

    Raises:
        Error: `path` exists already: nothing is overwritten.
    """
    if os.path.lexists(path):
        raise Error('%s exists already and is never overwritten: remove it first, or choose another name' % path)
    with replacing(os.path.abspath(path)) as part:
        yield part
        file = os.open(part, os.O_RDONLY)  # Of a folder, too.
        os.fsync(file)
        os.close(file)


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


TEMPORARY = re.compile(r'mixmatch-(.+)-(\d+)-\w+')


@contextlib.contextmanager
def making_temporary():
    """Makes a folder for temporary files, and removes it in the end; and those that killed processes have left."""
    place, host = tempfile.gettempdir(), socket.gethostname()
    for name in os.listdir(place):
        match = TEMPORARY.fullmatch(name)
        if match and match[1] == host and not is_running(int(match[2])):
            shutil.rmtree(os.path.join(place, name), ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix='mixmatch-%s-%d-' % (host, os.getpid())) as folder:
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
