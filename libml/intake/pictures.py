"""Pictures of any common format: which files of a folder are pictures, and one as pixels.

Nothing here knows of datasets: what brings pictures in and what classifies them reads them in the same way.
"""

import collections
import concurrent.futures
import contextlib
import errno
import functools
import io
import os
import pathlib
import stat
import struct
import sys
import threading
import warnings

import numpy as np
from PIL import Image

from libml import utils
from libml.utils import escape

MAX_MEGAPIXELS = 400  # Of a file before it is resized. Cameras reach 200; more is taken for a decompression bomb.
LARGE = 1 << 25  # Pixels. Of larger pictures one is decoded at a time: one for each core would fill the memory.
# Pillow opens EPS by running Ghostscript on it, and of the others reads the header alone.
NOT_READ = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}
# Formats that a file without an ending is tested for, by its first bytes. Those of other formats are too short.
SNIFFED = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'TIFF', 'WEBP')
FOREIGN = frozenset(  # Endings of pictures that Pillow does not read.
    ('.heic', '.heif', '.hif', '.jxl', '.svg', '.eps', '.ps', '.wmf', '.emf', '.psb', '.xcf', '.dcm')
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
UNKNOWN_FORMAT = 'a picture of a format that Pillow does not read: convert it to PNG or JPEG'
NOWHERE = 'a link that leads nowhere'


def list_files(folder):
    """Lists the files under a folder at any depth. Links to folders are followed.

    Returns:
        (pictures, unused): the paths, relative to `folder`, of the pictures, sorted; and a dict from the path of every
        other file to the reason why it is none: HIDDEN, SYSTEM, OTHER, UNKNOWN_FORMAT or NOWHERE. A link that leads
        nowhere is a file here.

    Raises:
        utils.Error: `folder` is no folder, links run in a circle, or a folder cannot be read.
    """
    if not os.path.isdir(folder):
        raise utils.Error('%s is no folder: it must be one with pictures' % escape(folder))
    found = dict(_iterate_files(folder, '', (), ''))
    return sorted(path for path in found if not found[path]), {path: why for path, why in found.items() if why}


def _iterate_files(folder, within, above, reason):
    """Yields the (relative path, reason or '') of the files under folder/within; `above` identifies its parents."""
    here = os.stat(os.path.join(folder, within))
    if (here.st_dev, here.st_ino) in above:
        raise utils.Error('%s leads to a folder that holds it: remove this link' % escape(os.path.join(folder, within)))
    for entry in sorted(os.scandir(os.path.join(folder, within)), key=lambda entry: entry.name):
        path, why = os.path.join(within, entry.name), reason or _judge_name(entry.name)
        mode = _find_mode(entry)
        if mode is not None and stat.S_ISDIR(mode):
            yield from _iterate_files(folder, path, (*above, (here.st_dev, here.st_ino)), why)
        else:
            yield path, why or _judge_file(entry, mode)


def list_folders(folder):
    """Returns the names of the folders in a folder whose pictures `listed` takes, sorted."""
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
    read = {ending for ending, name in Image.registered_extensions().items() if name in _list_formats()}
    return read | {'.mpo'}  # Pictures of several views, which Pillow opens as JPEG.


def _list_formats():
    Image.init()
    return [name for name in Image.OPEN if name not in NOT_READ]


def _sniff(path):
    with open(path, 'rb') as file:
        first = file.read(16)
    Image.init()
    return any(Image.OPEN[name][1](first) for name in SNIFFED if name in Image.OPEN)


# --- One picture ---


class TooDeep(ValueError):
    """A picture has more than 8 bits a value, and no range was given. Attributes low, high: its extreme values."""

    def __init__(self, low, high):
        super().__init__('has values from %.9g to %.9g, more than 8 bits: give --range=LOW,HIGH' % (low, high))
        self.low, self.high = low, high


def convert(source, size, colors, range=(), max_megapixels=MAX_MEGAPIXELS):
    """Reads a picture, crops its centre to the aspect wanted and resizes it with antialiasing.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, at least twice the size wanted. Metadata that
    cannot be read (EXIF, text, colour profiles) is passed over.

    Args:
        source: a path or a binary file, of any format that Pillow reads; of an animation, the first frame.
        size: (height, width).
        colors: 1 (grey) or 3 (RGB). Transparent parts become white.
        range: (low, high), which become 0 and 255 in pictures deeper than 8 bits; () to refuse such pictures.
        max_megapixels: a picture with more millions of pixels is refused.

    Returns:
        uint8 [height, width, colors].

    Raises:
        ValueError: it cannot be read; the text says why. TooDeep: it needs a range.
    """
    with relaxing_limits(max_megapixels):
        try:
            return _convert(source, size, colors, range)
        except (TooDeep, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ValueError('claims more than %g megapixels, the limit' % max_megapixels) from error
        except Exception as error:  # Pillow's readers raise whatever the damage makes them stumble over.
            with contextlib.suppress(Exception):
                return _convert(io.BytesIO(_strip_metadata(source)), size, colors, range)
            raise ValueError(str(error) or type(error).__name__) from error


def _convert(source, size, colors, range):
    mode = {1: 'L', 3: 'RGB'}[colors]
    with _open(source) as image:
        whole = _draft(image, 2 * max(size), mode)
        with _LARGE if image.width * image.height > LARGE else contextlib.nullcontext():
            pixels = _reduce_depth(source, image, range)
            turn = _find_turn(image)
            small = fit(_make_opaque(pixels).convert(mode), size[::-1] if turn in TURNS and turn >= 5 else size, whole)
    small = small.transpose(TURNS[turn]) if turn in TURNS else small
    return np.asarray(small, np.uint8).reshape(*size, colors)


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


def _open(source):
    if hasattr(source, 'seek'):
        source.seek(0)
    return Image.open(source, formats=_list_formats())


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


# --- More than 8 bits ---


def _reduce_depth(source, image, range):
    """Returns a picture, loaded, with 8 bits a value; deeper ones are mapped linearly from `range`."""
    wide = _find_wide_mode(image)
    if wide:
        values = _read_sixteen_bits(source, image, wide)
    else:
        image.load()
        if not image.mode.startswith(('I', 'F')):
            return image
        values = np.asarray(image)
    if image.mode != 'RGBA':
        return Image.frombytes(image.mode if wide else 'L', image.size, scale(values, range).tobytes())
    pixels = np.concatenate([scale(values[..., :3], range), (values[..., 3:] >> 8).astype(np.uint8)], -1)
    return Image.frombytes('RGBA', image.size, pixels.tobytes())


def scale(values, range):
    """Returns numbers as uint8: range = (low, high) becomes 0 and 255, what lies beyond is clipped.

    Raises:
        TooDeep: range is ().
    """
    values = np.asarray(values, np.float64)
    if not range:
        finite = values[np.isfinite(values)]
        raise TooDeep(*(finite.min(), finite.max()) if finite.size else (0, 0))
    low, high = range
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _find_wide_mode(image):
    """Returns Pillow's name of the layout of a colour picture with 16 bits a value, or ''."""
    for tile in getattr(image, 'tile', ()):
        name = tile.args if isinstance(tile.args, str) else (tile.args or ('',))[0]
        if isinstance(name, str) and ';16' in name and not image.mode.startswith('I'):
            return name
    return ''


def _read_sixteen_bits(source, image, name):
    """Returns uint16 [H, W, bands] of a picture with 16 bits a value.

    Pillow keeps the upper 8 of them. So the picture is decoded a second time, as if its bytes stood in the other order.
    """
    if name.startswith('LA'):
        raise ValueError('is grey with transparency and 16 bits a value: save it without transparency')
    swapped = name[:-1] + {'L': 'B', 'B': 'L', 'N': 'B' if sys.byteorder == 'little' else 'L'}[name[-1]]
    with _open(source) as second:
        for i, tile in enumerate(second.tile):
            args = swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:])
            second.tile[i] = tile._replace(args=args)
        low = np.asarray(second, np.uint16)
    image.load()
    return (np.asarray(image, np.uint16) << 8) + low


# --- Metadata ---


def _strip_metadata(source):
    """Returns the bytes of a PNG or JPEG file without what its pixels do not need; ValueError if it is neither."""
    if hasattr(source, 'seek'):
        source.seek(0)
        content = source.read()
    else:
        content = pathlib.Path(source).read_bytes()
    if content.startswith(b'\x89PNG\r\n\x1a\n'):
        return content[:8] + b''.join(_iterate_png_chunks(content))
    if content.startswith(b'\xff\xd8'):
        return b'\xff\xd8' + b''.join(_iterate_jpeg_segments(content))
    raise ValueError('neither PNG nor JPEG')


def _iterate_png_chunks(content):
    at = 8
    while at + 12 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, at)
        if kind in (b'IHDR', b'PLTE', b'tRNS', b'eXIf', b'IDAT', b'IEND'):
            yield content[at : at + 12 + length]
        at += 12 + length


def _iterate_jpeg_segments(content):
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
        if content[at + 1] not in (*range(0xE1, 0xEE), 0xEF, 0xFE):  # Leaves out APP1 to 15 (not Adobe's 14), comments.
            yield content[at:end]
        at = end
    yield content[at:]


# --- Many ---


_LARGE = threading.Lock()
_LENIENCE = threading.Lock()
_lenient = dict(threads=0, undo=None)  # How many threads are in `lenient`; the ExitStack that undoes what it changed.


@contextlib.contextmanager
def relaxing_limits(max_megapixels=MAX_MEGAPIXELS):
    """Lifts Pillow's limit on the size of pictures to `max_megapixels`, and silences its warnings of odd metadata.

    Both belong to the whole process: the first of several threads sets them, and the last one puts them back.
    """
    with _LENIENCE:
        if not _lenient['threads']:
            undo = _lenient['undo'] = contextlib.ExitStack()
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter('ignore')
            undo.callback(setattr, Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = max(1, int(max_megapixels * 1e6 / 2))  # Pillow refuses what has twice as many.
        _lenient['threads'] += 1
    try:
        yield
    finally:
        with _LENIENCE:
            _lenient['threads'] -= 1
            if not _lenient['threads']:
                _lenient['undo'].close()


def convert_all(paths, *args, ahead=0, **kwargs):
    """Converts pictures on all cores, ahead of the one that is asked for.

    Args:
        paths: iterable of paths.
        ahead: how many pictures ahead, at least; always some for each core.
        *args, **kwargs: of `convert`.

    Yields:
        for each path, in order: uint8 [height, width, colors], or the ValueError why it cannot be read.
    """

    def attempt(path):
        try:
            return convert(path, *args, **kwargs)
        except ValueError as error:
            return error

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
