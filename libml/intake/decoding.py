"""A picture file, decoded by Pillow: which formats, how much memory, 8 bits a value, and whatever its metadata hold."""

import contextlib
import struct
import sys
import threading
import warnings

import numpy as np
from PIL import Image

MAX_MEGAPIXELS = 400  # Of a file before it is resized. Cameras reach 200; more is taken for a decompression bomb.
STRIP = 1 << 20  # Pixels that are converted at a time.
LARGEST = 1 << 28  # Bytes of a file whose metadata are cut out.
# Formats that Pillow reads on its own: it starts no program, and opens no file beside the picture. (EPS starts
# Ghostscript, and IPTC opens whatever it holds, EPS too.) FITS is left out: its decoder takes any amount of memory.
READ = ('AVIF', 'BLP', 'BMP', 'CUR', 'DCX', 'DDS', 'DIB', 'FLI', 'FTEX', 'GBR', 'GIF', 'ICNS', 'ICO', 'IM') + (
    ('JPEG', 'JPEG2000', 'MSP', 'PCD', 'PCX', 'PIXAR', 'PNG', 'PPM', 'PSD', 'QOI', 'SGI', 'SUN', 'TGA', 'TIFF', 'WEBP')
    + ('XBM', 'XPM')
)
NESTED = ('BLP', 'CUR', 'ICNS', 'ICO')  # They hold pictures of another format, of which only decoding shows the size.
TILE_WIDTH, TILE_LENGTH = 322, 323  # Tags of TIFF.
# Bytes that decoding may take, for each pixel of the limit: all pictures that are read at a time share them (2 GB).
BYTES_A_PIXEL = 5
WORK = 64  # Bytes that converting a strip takes a pixel.
# Bytes a pixel that decoders take besides the picture: all are decoded at once, some into larger numbers.
DECODER = dict(AVIF=12, JPEG2000=12, WEBP=12)
PROGRESSIVE = 6  # The same of a progressive JPEG, which is kept whole until the end.
STORED = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2, 'I;16B': 2, 'I;16L': 2, 'I;16N': 2}  # By mode; of all others 4.


def list_formats():
    """Returns the names that Pillow has for the formats that are read here."""
    Image.init()
    return [name for name in READ if name in Image.OPEN]


class TooLarge(ValueError):
    """A picture takes more memory than it may."""


class TooDeep(ValueError):
    """A picture has more than 8 bits a value, and no range was given. Attributes low, high: its extreme values."""

    def __init__(self, low, high):
        super().__init__('has values from %.9g to %.9g, more than 8 bits: give --range=LOW,HIGH' % (low, high))
        self.low, self.high = low, high


def open_picture(file):
    """Returns the PIL.Image, not yet decoded, of a binary file."""
    file.seek(0)
    return Image.open(file, formats=list_formats())


# --- Memory ---


_MEMORY = threading.Condition()
_taken = [0]  # Bytes, by all pictures that are being read.


def find_limit(max_megapixels):
    """Returns the bytes that all pictures may take that are being read."""
    return max(int(max_megapixels * 1e6 * BYTES_A_PIXEL), 2 * WORK * STRIP)


def count_bytes(image, size, max_megapixels):
    """Returns the bytes that it takes to decode an open picture and to convert it strip by strip.

    size: (width, height) of the file; a JPEG may be decoded at a smaller one.
    """
    if image.format in NESTED:
        return find_limit(max_megapixels)
    tags = getattr(image, 'tag_v2', {})  # A TIFF's tiles may be larger than the picture.
    pixels = max(image.width * image.height, tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0))
    copies = 2 if _find_wide_mode(image) or any(tile[0] == 'libtiff' for tile in getattr(image, 'tile', ())) else 1
    extra = PROGRESSIVE if image.info.get('progressive') else DECODER.get(image.format, 0)
    return extra * size[0] * size[1] + copies * STORED.get(image.mode, 4) * pixels + WORK * min(pixels, STRIP)


@contextlib.contextmanager
def sharing_memory(need, max_megapixels):
    """Waits until all pictures that are being read take what is allowed at most, this one's `need` bytes among them.

    Raises:
        TooLarge: it takes more than is allowed, which grows with max_megapixels.
    """
    limit = find_limit(max_megapixels)
    if need > limit:
        text = 'takes %.2g GB of memory to decode, more than %.2g: give a larger --max_megapixels'
        raise TooLarge(text % (need / 1e9, limit / 1e9))
    with _MEMORY:
        _MEMORY.wait_for(lambda: not _taken[0] or _taken[0] + need <= limit)
        _taken[0] += need
    try:
        yield
    finally:
        with _MEMORY:
            _taken[0] -= need
            _MEMORY.notify_all()


_limits = []  # While pictures are being read: Pillow's own limit, and then one for each of them.


@contextlib.contextmanager
def relaxing_limits(max_megapixels):
    """Lifts Pillow's limit on the size of pictures to `max_megapixels`, and silences its warnings of odd metadata.

    Both belong to the whole process. So the limit is the largest of those of all pictures that are being read.
    """
    limit = max(1, int(max_megapixels * 1e6 / 2))  # Pillow refuses what has twice as many.
    with _MEMORY:
        if not any('PIL' in str(entry[3]) for entry in warnings.filters):
            warnings.filterwarnings('ignore', module=r'PIL\.')
        _limits.extend([limit] if _limits else [Image.MAX_IMAGE_PIXELS, limit])
        Image.MAX_IMAGE_PIXELS = max(_limits[1:])
    try:
        yield
    finally:
        with _MEMORY:
            _limits.remove(limit)
            Image.MAX_IMAGE_PIXELS = max(_limits[1:], default=_limits[0])
            if not _limits[1:]:
                _limits.clear()


# --- More than 8 bits ---


def load(file, image, range):
    """Decodes a picture of a binary file; returns a function of a box that cuts it out with 8 bits a value.

    Deeper values are mapped linearly from `range`.

    Raises:
        TooDeep: there are deeper values, and range is ().
    """
    wide = _find_wide_mode(image)
    low = _decode_low_bytes(file, wide) if wide else None
    image.load()
    if not (wide or image.mode.startswith(('I', 'F'))):
        return image.crop

    # Pillow inverts such a TIFF, as X-rays often are, with 8 bits a value only.
    white_is_zero = image.format == 'TIFF' and image.mode.startswith('I;16') and image.tag_v2.get(262) == 0

    def read(box):
        values = np.asarray(image.crop(box))
        values = 65535 - values if white_is_zero else values
        return (values.astype(np.uint16) << 8) + np.asarray(low.crop(box)) if wide else values

    def scale_strip(box):
        values = read(box)
        if image.mode != 'RGBA':
            pixels = scale(values, range)
            return Image.frombytes(image.mode if wide else 'L', pixels.shape[1::-1], pixels.tobytes())
        pixels = np.concatenate([scale(values[..., :3], range), (values[..., 3:] >> 8).astype(np.uint8)], -1)
        return Image.frombytes('RGBA', pixels.shape[1::-1], pixels.tobytes())

    if not range:
        raise TooDeep(*_find_extremes(image, read))
    return scale_strip


def _find_extremes(image, read):
    """Returns the lowest and the highest finite value of a picture whose boxes `read` gives; 0, 0 if there is none."""
    lows, highs, rows = [], [], max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        values = read((0, top, image.width, min(top + rows, image.height)))
        values = values[..., :3] if image.mode == 'RGBA' else values
        values = values[np.isfinite(values)]
        if values.size:
            lows.append(values.min())
            highs.append(values.max())
    return (min(lows), max(highs)) if lows else (0, 0)


def scale(values, range):
    """Returns numbers as uint8: range = (low, high) becomes 0 and 255, what lies beyond is clipped."""
    low, high = range
    values = np.nan_to_num(np.asarray(values, np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _find_wide_mode(image):
    """Returns Pillow's name of the layout of a colour picture with 16 bits a value, or ''."""
    for tile in getattr(image, 'tile', ()):
        name = tile.args if isinstance(tile.args, str) else (tile.args or ('',))[0]
        if isinstance(name, str) and ';16' in name and not image.mode.startswith('I'):
            return name
    return ''


def _decode_low_bytes(file, name):
    """Returns the PIL.Image of the lower 8 bits of a picture with 16 bits a value, of which Pillow keeps the upper 8.

    The picture is decoded a second time, as if its bytes stood in the other order.
    """
    if name.startswith('LA'):
        raise ValueError('is grey with transparency and 16 bits a value: save it without transparency')
    swapped = name[:-1] + {'L': 'B', 'B': 'L', 'N': 'B' if sys.byteorder == 'little' else 'L'}[name[-1]]
    second = open_picture(file)
    for i, tile in enumerate(second.tile):
        args = swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:])
        second.tile[i] = tile._replace(args=args)
    second.load()
    return second


# --- Metadata ---


def strip_metadata(file):
    """Returns the bytes of a binary file without what pixels do not need; ValueError if it is neither."""
    file.seek(0)
    content = file.read(8)
    if content.startswith((b'\x89PNG', b'\xff\xd8')):
        content += file.read(LARGEST)
    if len(content) > LARGEST:
        raise ValueError('too large')
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
