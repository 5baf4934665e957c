"""Archives of published datasets: downloaded or taken from a folder, verified, and read without unpacking them to disk.

Members are streamed and taken by their base names, so that no name or link in an archive decides what is written where.
"""

import os
import re
import tarfile
import zlib

from libml import utils
from libml.cli import progress

CHUNK = 1 << 20
TIMEOUT = 60  # Seconds without an answer.
UNFINISHED = re.compile('tmp[a-z0-9_]{8}')  # Names that pooch gives to what is not whole yet.

# --- Getting them ---


def take(archive, folder, verify=True):
    """Returns the path of a published.Archive that lies in `folder` already, verified.

    Raises:
        utils.Error: it is missing, or (if `verify`) not the published one.
    """
    import pooch  # Slow to import, and only needed here.

    path = os.path.join(folder, archive.name)
    utils.refuse(not os.path.isfile(path), '%s is missing: get it from %s', path, archive.url)
    found = pooch.file_hash(path) if verify else archive.sha256
    text = '%s has the sha256 %s, not the published %s: it is damaged or another file (--noverify accepts it)'
    utils.refuse(found != archive.sha256, text, path, found, archive.sha256)
    return path


def download(archive, folder, verify=True):
    """Returns the path of a published.Archive in `folder`, downloaded unless it is there: whole or not at all.

    Raises:
        utils.Error: the server does not answer or breaks off, or (if `verify`) sends another file.
    """
    import pooch

    pooch.get_logger().setLevel('WARNING')
    bar = progress.make_bar(desc=archive.name, total=1, unit='B', unit_scale=True, leave=False)
    get = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT)
    try:
        with bar:
            return pooch.retrieve(archive.url, archive.sha256 if verify else None, archive.name, folder, downloader=get)
    except (OSError, ValueError) as error:  # ValueError: another sha256.
        text = (
            'cannot download %s (%s): try again, or get it elsewhere and use --source (--noverify accepts another file)'
        )
        raise utils.Error(text % (archive.url, utils.explain(error))) from error


# --- Reading tar archives ---


def read_chunks(path, names, size=-1):
    """Yields (base name, bytes) of the members of a tar archive whose base names are in `names`, in its order.

    Each comes in pieces of `size` bytes (the last: what is left); -1: whole.

    Raises:
        utils.Error: the archive is cut or damaged, or lacks one of them; a link is none.
    """
    missing = set(names)
    try:
        with tarfile.open(path, 'r|*') as tar:
            for member in tar:
                name = member.name.rsplit('/', 1)[-1]
                if name in missing and member.isfile():
                    missing.remove(name)
                    content = tar.extractfile(member)
                    while chunk := content.read(size):
                        yield name, chunk
                    if not missing:
                        return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise utils.Error('%s cannot be read (%s): it is cut or damaged, get it again' % (path, error)) from error
    raise utils.Error('%s lacks %s: it is not the published archive' % (path, ', '.join(sorted(missing))))


def read_members(path, names):
    """Returns {base name: bytes} of the members `names` of a tar archive; raises what `read_chunks` raises."""
    return {**dict.fromkeys(names, b''), **dict(read_chunks(path, names))}
