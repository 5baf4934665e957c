"""Pictures of any common format: which files of a folder are pictures, and one as pixels.

Nothing here knows of datasets: what brings pictures in and what classifies them reads them in the same way.
"""

import collections
import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import io
import os
import stat

import numpy as np
from PIL import Image, UnidentifiedImageError

from libml import files, utils
from libml.intake import decoding
from libml.intake.decoding import MAX_MEGAPIXELS, STRIP, TooDeep
from libml.utils import escape

LARGE = 1 << 25  # Pixels. Larger pictures are made smaller by averages, before they are resized.
# The system's answers that a file's content, or its absence, explains. Others say that it cannot be read now.
CONTENT = {errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EOVERFLOW}
# Formats that a file without an ending is tested for, by its first bytes. Those of other formats are too short.
SNIFFED = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'TIFF', 'WEBP')
FOREIGN = frozenset(  # Endings of pictures that are not read.
    ('.heic', '.heif', '.hif', '.jxl', '.svg', '.eps', '.ps', '.wmf', '.emf', '.psb', '.xcf', '.dcm', '.iim')
    + ('.fit', '.fits')
    + ('.dng', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.raf', '.rw2')  # Of cameras, unprocessed.
)
GENERATED = frozenset(  # Folders that systems make, in lower case.
    ('@eadir', '#recycle', '@recycle', '@tmp')  # Of network storage.
    + ('__macosx', '$recycle.bin', 'system volume information', 'lost+found', '.thumbnails', '.ipynb_checkpoints')
)
TURNS = {  # By EXIF's orientation.
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# --- The files of a folder ---


HIDDEN = 'hidden'
SYSTEM = 'in a folder that a system generates'
OTHER = 'not a picture'
UNKNOWN_FORMAT = 'a picture of a format that is not read: convert it to PNG or JPEG'
NOWHERE = 'a link that leads nowhere'
MOST_VISITS = 1000  # Ways by links to one folder.


def list_files(folder):
    """Lists the files under a folder at any depth. Links to folders are followed.

    Returns:
        (pictures, unused): the paths, relative to `folder`, of the pictures, sorted; and a dict from the path of every
        other file to the reason why it is none: HIDDEN, SYSTEM, OTHER, UNKNOWN_FORMAT or NOWHERE. A link that leads
        nowhere is a file here.

    Raises:
        utils.Error: `folder` is no folder, links run in a circle, more than MOST_VISITS ways lead to one folder, or a
            folder cannot be read.
    """
    utils.refuse(not os.path.isdir(folder), '%s is no folder: it must be one with pictures', escape(folder))
    found, waiting, visits = {}, [('', (), '')], collections.Counter()
    while waiting:  # Not by recursion, as folders may be deep.
        within, above, reason = waiting.pop()
        here = os.stat(os.path.join(folder, within))
        above = (*above, (here.st_dev, here.st_ino))
        text = '%s leads to a folder that holds it: remove this link'
        utils.refuse(above[-1] in above[:-1], text, escape(os.path.join(folder, within)))
        visits[above[-1]] += 1  # Two links in each of 30 folders, each to the next one, are 2^30 ways.
        text = 'links lead to one folder in more than %d ways, the last one %s: remove some'
        utils.refuse(visits[above[-1]] > MOST_VISITS, text, MOST_VISITS, escape(os.path.join(folder, within)))
        for entry in os.scandir(os.path.join(folder, within)):
            path, why, mode = os.path.join(within, entry.name), reason or _judge_name(entry.name), _find_mode(entry)
            if mode is not None and stat.S_ISDIR(mode):
                waiting.append((path, above, why))
            else:
                found[path] = why or _judge_file(entry, mode)
    found = {path: found[path] for path in sorted(found)}
    return [path for path in found if not found[path]], {path: why for path, why in found.items() if why}


def list_folders(folder):
    """Returns the names of the folders in a folder whose pictures `list_files` takes, sorted."""
    entries = [entry for entry in os.scandir(folder) if not _judge_name(entry.name)]
    return sorted(entry.name for entry in entries if stat.S_ISDIR(_find_mode(entry) or 0))


def _judge_name(name):
    """Returns the reason why files of a name, or in a folder of that name, are not taken, or ''."""
    if name.lower() in GENERATED:
        return SYSTEM
    return HIDDEN if name.startswith('.') else ''


def _find_mode(entry):
    """Returns st_mode of what an os.DirEntry leads to, None where it leads nowhere."""
    try:
        return entry.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise utils.Error('%s is a link that leads to itself: remove it' % escape(entry.path)) from error
        raise


def _judge_file(entry, mode):
    """Returns the reason why a file is no picture that can be read, or ''."""
    if mode is None:
        return NOWHERE
    ending = os.path.splitext(entry.name)[1].lower()
    if not stat.S_ISREG(mode):
        return OTHER
    if ending in _list_endings():
        return ''
    if ending in FOREIGN:
        return UNKNOWN_FORMAT
    return '' if not ending.strip('.0123456789') and _sniff(entry.path) else OTHER


@functools.cache  # Every file asks.
def _list_endings():
    """Returns the endings of the files that can be read, as Pillow registers them: {'.png', ...}."""
    read = {ending for ending, name in Image.registered_extensions().items() if name in decoding.list_formats()}
    return read | {'.mpo'}  # Pictures of several views, which Pillow opens as JPEG.


def _sniff(path):
    try:
        with _opening(path) as file:
            first = file.read(16)
    except ValueError:
        return False
    Image.init()
    return any(Image.OPEN[name][1](first) for name in SNIFFED if name in Image.OPEN)


# --- One picture ---


def convert(source, size, colors, range=(), max_megapixels=MAX_MEGAPIXELS):
    """Reads a picture, crops its centre to the aspect wanted and resizes it with antialiasing.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, at least twice the size wanted. Metadata that
    cannot be read (EXIF, text, colour profiles) is passed over.

    Args:
        source: a path or a binary file, of any format that Pillow reads; of an animation, the first frame.
        size: (height, width); or an int, to scale the whole picture until its longer side is at most that.
        colors: 1 (grey) or 3 (RGB). Transparent parts become white.
        range: (low, high), which become 0 and 255 in pictures deeper than 8 bits; () to refuse such pictures.
        max_megapixels: a picture with more millions of pixels is refused.

    Returns:
        uint8 [height, width, colors].

    Raises:
        ValueError: it cannot be read; the text says why. TooDeep: it needs a range.
        OSError: the system refuses to read it now, whatever it holds.
    """
    opened = contextlib.nullcontext(source) if hasattr(source, 'seek') else _opening(source)
    with decoding.relaxing_limits(max_megapixels), opened as file:
        try:
            return _convert(file, size, colors, range, max_megapixels)
        except (TooDeep, decoding.TooLarge, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ValueError('claims more than %g megapixels, the limit' % max_megapixels) from error
        except Exception as error:  # Pillow's readers raise whatever the damage makes them stumble over.
            _check_refusal(error)
            try:
                return _convert(io.BytesIO(decoding.strip_metadata(file)), size, colors, range, max_megapixels)
            except Exception as second:
                _check_refusal(second)
            if isinstance(error, UnidentifiedImageError):  # Its text shows the file as an object.
                raise ValueError('is no picture of a format that is read') from error
            raise ValueError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _opening(path):
    """Opens a file of bytes, whatever came in its place since it was listed: a named pipe is not waited for.

    Raises:
        ValueError: there is no file. OSError: the system refuses to read it now.
    """
    try:
        with files.reading(path) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError('is no file')
            yield file
    except OSError as error:
        _check_refusal(error)
        raise ValueError(str(error)) from error


def _check_refusal(error):
    """Raises an error again if the system does not let a file be read now: no right to, a bad disk, no memory."""
    if isinstance(error, OSError) and error.errno not in (None, *CONTENT):
        raise error


def _convert(file, size, colors, range, max_megapixels):
    mode = {1: 'L', 3: 'RGB'}[colors]
    with decoding.open_picture(file) as image:
        full = image.size
        whole = _draft(image, 2 * np.max(size), mode)
        with decoding.sharing_memory(decoding.count_bytes(image, full, max_megapixels), max_megapixels):
            read_strip = decoding.load(file, image, range)
            turn = _find_turn(image)
            if isinstance(size, int):
                wanted = [max(1, round(side * min(1, size / max(full)))) for side in full[::-1]]
            else:
                wanted = size[::-1] if turn in TURNS and turn >= 5 else size
            large = image.width * image.height > LARGE
            factor = max(1, min(image.width // wanted[1], image.height // wanted[0]) // 2) if large else 1
            left, top, right, bottom = whole or (0, 0, *image.size)
            box = [side / factor for side in (left, top, right, bottom)]
            small = fit(_shrink(image, read_strip, mode, factor), wanted, box)
    small = small.transpose(TURNS[turn]) if turn in TURNS else small
    return np.asarray(small, np.uint8).reshape(*small.size[::-1], colors)


def _shrink(image, read_strip, mode, factor):
    """Returns a loaded picture in another mode, its sides divided by `factor`; made strip by strip."""
    width, height = image.size
    if factor == 1 and width * height <= STRIP:
        return _make_opaque(read_strip((0, 0, width, height))).convert(mode)
    rows = max(1, STRIP // width // factor) * factor
    small = Image.new(mode, (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = _make_opaque(read_strip((0, top, width, min(top + rows, height)))).convert(mode)
        small.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return small


def _draft(image, side, mode):
    """Lets a JPEG that is far larger than `side` be decoded smaller: its sides stay at least `side`.

    Returns (left, top, right, bottom), where the picture lies in what will be decoded; None where it fills that.
    """
    if min(image.size) < 2 * side:
        return None
    drafted = image.draft(mode if mode == 'L' else None, (side, side))
    return drafted and drafted[1]  # The box of the true picture: beyond it, the decoded picture has padding.


def fit(image, size, whole=None, method=Image.Resampling.LANCZOS):
    """Returns a PIL.Image cropped to the aspect of size = (height, width), at its centre, and resized to it.

    `whole`: (left, top, right, bottom) of what is taken for the whole picture; None: all of it.
    """
    left, top, right, bottom = whole or (0, 0, *image.size)
    scale = min((right - left) / size[1], (bottom - top) / size[0])
    x, y = max(0, right - left - scale * size[1]) / 2, max(0, bottom - top - scale * size[0]) / 2
    return image.resize((size[1], size[0]), method, (left + x, top + y, right - x, bottom - y))


def _find_turn(image):
    """Returns EXIF's orientation, 1 to 8, of a loaded picture; 1 where it cannot be told."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Whatever the damage makes the reader stumble over.
        return 1


def _make_opaque(image):
    """Puts a transparent picture on white."""
    if 'A' in image.getbands() or 'a' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image


def hash_pixels(image):
    """Returns a digest of pixels, uint8 [H, W, C], bytes."""
    return hashlib.sha256(image.tobytes()).digest()


# --- Many ---


def convert_all(paths, size, colors, range=(), max_megapixels=MAX_MEGAPIXELS, ahead=0):
    """Converts pictures on all cores, ahead of the one that is asked for.

    Args:
        paths: iterable of paths.
        size, colors, range, max_megapixels: see `convert`.
        ahead: how many pictures ahead, at least; always some for each core.

    Yields:
        for each path, in order: uint8 [height, width, colors], or the ValueError why it cannot be read.

    Raises:
        utils.Error: the system refuses to read one now, whatever it holds.
    """

    def attempt(path):
        try:
            return convert(path, size, colors, range, max_megapixels)
        except ValueError as error:
            return error
        except OSError as error:
            text = '%s may be whole, but the system does not let it be read now (%s)'
            raise utils.Error(text % (escape(path), error.strerror)) from error

    workers = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    pool = concurrent.futures.ThreadPoolExecutor(workers)  # Pillow decodes and resizes outside Python's lock.
    waiting = collections.deque()
    try:
        for path in paths:
            waiting.append(pool.submit(attempt, path))
            if len(waiting) > max(4 * workers, ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
