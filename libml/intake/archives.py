"""Archives of published datasets: downloaded or taken from a folder, verified, and read without unpacking them to disk.

Nothing is unpickled. A link, or a name that would leave a folder, before the last wanted member is an error.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import sys
import tarfile
import urllib.error
import urllib.request
import zlib

import filelock
from tqdm import tqdm

from libml import files, utils

CHUNK = 1 << 20
TIMEOUT = 60  # Seconds without an answer.


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file: where it is, its length in bytes and its sha256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self):
        return self.url.rsplit('/', 1)[1]


# --- Getting them ---


def take(archive, folder, verify=True):
    """Returns the path of an archive that lies in `folder` already, verified.

    Raises:
        utils.Error: it is missing, or (if `verify`) not the published one.
    """
    path = os.path.join(folder, archive.name)
    if not os.path.isfile(path):
        raise utils.Error('%s is missing: get it from %s' % (path, archive.url))
    if verify:
        verify_archive(archive, path)
    return path


def download(archive, folder, verify=True):
    """Returns the path of an archive in `folder`, downloaded unless it is there. Interrupted downloads resume.

    Raises:
        utils.Error: the server does not answer or breaks off, or (if `verify`) sends another file, which is removed.
    """
    path = os.path.join(folder, archive.name)
    if os.path.isfile(path):
        return take(archive, folder, verify)
    part = path + '.download'
    files.refuse_link(part)
    sha = _download(archive, part)
    if verify:
        try:
            verify_archive(archive, part, sha)
        except utils.Error:
            os.remove(part)  # Or the next try would go on from what is wrong.
            raise
    os.replace(part, path)
    return path


@contextlib.contextmanager
def locking(path):
    """Holds the lock file `path`, which other processes wait for meanwhile; it is removed in the end.

    Where the file system has no locks, a line on stderr says so, and nothing is locked.
    """
    files.refuse_link(path)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print('Waiting for another process, which holds %s' % path, file=sys.stderr)
        lock.acquire()
    except OSError as error:
        utils.warn('%s (%s): let no other process download there' % (path, error.strerror))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # A waiting process sees that the file is gone, and makes a new one.
        lock.release()


def _download(archive, part):
    """Downloads to `part` from where it ends; returns the sha256 of the whole."""
    sha, have = hashlib.sha256(), 0
    if os.path.isfile(part):
        sha, have = compute_digest(part), os.path.getsize(part)
    if have == archive.size:
        return sha
    request = urllib.request.Request(archive.url, headers={'Range': 'bytes=%d-' % have} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if have and response.status != 206:  # The server sends it from its beginning.
                sha, have = hashlib.sha256(), 0
            total = have + int(response.headers.get('Content-Length') or archive.size - have)
            with open(part, 'r+b' if have else 'wb') as f, make_bar(archive.name, total, have) as bar:
                f.seek(have)
                while chunk := response.read(CHUNK):
                    f.write(chunk)
                    sha.update(chunk)
                    bar.update(len(chunk))
                done = f.tell()
    except (urllib.error.URLError, OSError) as error:
        text = 'cannot download %s (%s): try again to continue where it broke off, or get it elsewhere and use --source'
        raise utils.Error(text % (archive.url, error)) from error
    if done < total:
        raise utils.Error('%s broke off after %d of %d bytes: try again to continue there' % (archive.url, done, total))
    return sha


def make_bar(name, total, initial=0):
    """Returns a progress bar of bytes."""
    return tqdm(desc=name, total=total, initial=initial, unit='B', unit_scale=True, unit_divisor=1024, leave=False)


def compute_digest(path):
    """Returns the hashlib object of a file's sha256."""
    sha = hashlib.sha256()
    with open(path, 'rb') as f, make_bar('sha256 of ' + os.path.basename(path), os.path.getsize(path)) as bar:
        while chunk := f.read(CHUNK):
            sha.update(chunk)
            bar.update(len(chunk))
    return sha


def verify_archive(archive, path, sha=None):
    """Raises utils.Error unless the file at `path` is the published one; `sha` is its hashlib object, where known."""
    text = '%s has the %s %s, not the published %s: it is damaged or another file (--noverify accepts it all the same)'
    size = os.path.getsize(path)
    if size != archive.size:
        raise utils.Error(text % (path, 'length', size, archive.size))
    found = (sha or compute_digest(path)).hexdigest()
    if found != archive.sha256:
        raise utils.Error(text % (path, 'sha256', found, archive.sha256))


# --- Reading tar archives ---


@contextlib.contextmanager
def reading(path):
    """Turns what goes wrong while an archive is read into a utils.Error that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise utils.Error('%s cannot be read (%s): it is cut or damaged, get it again' % (path, error)) from error


def iterate_members(path, names):
    """Yields (base name, binary file) of the members of a tar archive whose base names are in `names`.

    They come in the archive's order, and each is to be read before the next is asked for.

    Raises:
        utils.Error: the archive is cut or damaged, lacks one of them, or holds, before the last of them, a link, a
            device or a name that would leave the folder it is unpacked in.
    """
    missing = set(names)
    with tarfile.open(path, 'r|*') as tar:
        for member in tar:
            _refuse_hostile(path, member)
            name = member.name.rsplit('/', 1)[-1]
            if name in missing and member.isfile():
                missing.remove(name)
                yield name, tar.extractfile(member)
                if not missing:
                    return
    raise utils.Error('%s lacks %s: it is not the published archive' % (path, ', '.join(sorted(missing))))


def _refuse_hostile(path, member):
    name = pathlib.PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        raise utils.Error('%s holds %r, a link or a device: refused' % (path, member.name))
    if name.is_absolute() or '..' in name.parts or '\\' in member.name:
        raise utils.Error('%s holds %r, a name that leads out of its folder: refused' % (path, member.name))


def read_members(path, names):
    """Returns {base name: bytes} of the members `names` of a tar archive; raises what `members` raises."""
    with reading(path):
        return {name: f.read() for name, f in iterate_members(path, names)}


def read_chunks(path, name, size):
    """Yields the bytes of one member of a tar archive, `size` at a time (the last: what is left)."""
    with reading(path):
        for _, f in iterate_members(path, [name]):
            while chunk := f.read(size):
                yield chunk
