"""Pictures of any format: which files of a folder they are, and their pixels."""

import contextlib
import errno
import functools
import io
import json
import os
import struct
import time
import warnings
import zlib

import fakes
import numpy as np
import pytest
from conftest import put
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from libml import utils
from libml.intake import decoding, pictures


def convert(image, size=(8, 8), colors=3, kind='PNG', range=(), **options):
    """Converts a PIL.Image, or the pixels of one, after it was saved in a format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file := io.BytesIO(), kind, **options)
    return pictures.convert(file, size, colors, range)


# --- One picture ---


def test_the_centre_is_cut_out_to_the_aspect_wanted():
    wide = np.zeros([10, 30, 3], np.uint8)
    wide[:, 10:20] = (10, 200, 90)
    found = convert(wide).astype(int)
    assert np.abs(found[:, 1:-1] - (10, 200, 90)).max() <= 3 and np.abs(found - (10, 200, 90)).max() < 60
    found = convert(wide.transpose(1, 0, 2), size=(4, 8))
    assert found.shape == (4, 8, 3) and (found[:, 1:-1] == (10, 200, 90)).all()


def test_resizing_is_antialiased():
    stripes = np.zeros([64, 64], np.uint8)
    stripes[:, ::2] = 255
    found = convert(stripes, colors=1)
    assert found.shape == (8, 8, 1) and np.abs(found.astype(int) - 127.5).max() < 12


def test_a_picture_of_the_right_size_keeps_its_pixels():
    color, grey = (fakes.random_images(1, 8, 8, colors)[0] for colors in (3, 1))
    for span in (), (0, 4095):  # A range is for deeper values.
        np.testing.assert_array_equal(convert(color, range=span), color)
        np.testing.assert_array_equal(convert(grey[..., 0], colors=1, range=span), grey)
    assert (convert(np.full([8, 8, 3], (255, 0, 0), np.uint8), colors=1) == 76).all()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr'])
def test_pictures_of_all_modes_are_read(mode):
    grey = Image.fromarray(np.full([8, 8], 128, np.uint8))
    kind = 'TIFF' if mode in ('CMYK', 'YCbCr', 'PA') else 'PNG'
    found = convert(grey.convert('P' if mode == 'PA' else mode), kind=kind)
    assert mode == '1' or np.abs(found.astype(int) - 128).max() <= 3


def test_transparent_parts_become_white():
    pixels = np.zeros([8, 8, 4], np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    found = convert(pixels)
    assert (found[:4] == (10, 20, 30)).all() and (found[4:] == 255).all()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_a_photo_is_turned_as_its_camera_says(kind):
    upright = np.zeros([16, 8], np.uint8)
    upright[:8, :4], upright[:8, 4:], upright[8:, :4] = 250, 160, 80
    undo = {**pictures.TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for turn in range(1, 9):
        image, exif = Image.fromarray(upright), Image.Exif()
        exif[0x0112] = turn
        image = image.transpose(undo[turn]) if turn > 1 else image
        found = convert(image.convert('RGB'), size=(16, 8), colors=1, kind=kind, exif=exif)
        assert np.abs(found[..., 0].astype(int) - upright)[[2, 3, 12, 13]][:, [1, 2, 5, 6]].max() <= 12, turn


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full([8, 8], value, np.uint8)) for value in (50, 200)]
    for kind in 'GIF', 'PNG', 'TIFF', 'WEBP':
        found = convert(frames[0], kind=kind, save_all=True, append_images=frames[1:])
        assert np.abs(found.astype(int) - 50).max() <= 2, kind


# --- Large pictures ---


def photo(height, width, seed=0):
    """Returns a PIL.Image with large shapes and fine noise."""
    random = np.random.RandomState(seed)
    shapes = Image.fromarray(random.randint(0, 256, [12, 16, 3]).astype(np.uint8)).resize((width, height))
    noisy = np.asarray(shapes, int) + random.normal(0, 25, [height, width, 3])
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize('colors', [1, 3])
@pytest.mark.parametrize('size', [(32, 32), (24, 48), (70, 50)])
def test_a_jpeg_decoded_at_a_reduced_scale_looks_as_decoded_in_full(monkeypatch, size, colors):
    image = photo(700, 900)
    quick = convert(image, size, colors, 'JPEG').astype(int)
    monkeypatch.setattr('PIL.JpegImagePlugin.JpegImageFile.draft', lambda *args: None)
    full = convert(image, size, colors, 'JPEG').astype(int)
    assert np.abs(quick - full).mean() < 1 and np.abs(quick - full).max() < 12


def test_a_jpeg_is_decoded_at_twice_the_size_at_least(monkeypatch):
    seen = []
    fit = pictures.fit
    monkeypatch.setattr(pictures, 'fit', lambda image, *args: seen.append(image.size) or fit(image, *args))
    for width in range(64, 700, 37):
        convert(photo(500, width), (30, 40), kind='JPEG')
        assert min(seen[-1]) >= min(80, width)
    assert seen[-1][0] < width / 2


def test_the_limit_is_what_was_asked_and_pillows_own_comes_back(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    large = Image.new('1', (20000, 9500))  # Pillow itself allows less.
    assert (convert(large, colors=1) == 0).all()
    Image.new('L', (1500, 1000)).save(path := str(tmp_path / 'x.png'))
    pictures.convert(path, (8, 8), 1, max_megapixels=1.5)
    with pytest.raises(ValueError, match=r'^claims more than 1\.4 megapixels, the limit$'):
        pictures.convert(path, (8, 8), 1, max_megapixels=1.4)
    Image.new('L', (9, 9)).save(path)
    one, other = (pictures.convert_all([path] * 50, (8, 8), 1, max_megapixels=limit) for limit in (9, 5))
    for _ in zip(one, other, strict=True):  # Readers in turns; a program's own warnings stay.
        with pytest.warns(UserWarning, match='mine'):
            warnings.warn('mine', stacklevel=2)
    assert before == Image.MAX_IMAGE_PIXELS
    with decoding.relaxing_limits(9):
        with decoding.relaxing_limits(5):
            assert Image.MAX_IMAGE_PIXELS == 4_500_000
        assert Image.MAX_IMAGE_PIXELS == 4_500_000
    assert before == Image.MAX_IMAGE_PIXELS


# --- Deep pictures ---

RAMP = np.tile(np.linspace(0, 1, 24), (24, 1))
DEEP = [  # Format, values, type, and the range that they span.
    ('PNG', RAMP * 65535, np.uint16, (0, 65535)),
    ('PNG', RAMP * 4095, np.uint16, (0, 4095)),
    ('TIFF', RAMP * 1023, np.uint16, (0, 1023)),
    ('TIFF', RAMP, np.float32, (0, 1)),
    ('TIFF', RAMP * 255, np.float32, (0, 255)),
    ('TIFF', RAMP * (1 << 24), np.int32, (0, 1 << 24)),
    ('TIFF', RAMP * 2000 - 1000, np.int32, (-1000, 1000)),
    ('TIFF', RAMP * 2 - 1, np.float32, (-1, 1)),
]


@pytest.mark.parametrize(('kind', 'values', 'dtype', 'span'), DEEP)
def test_deep_grey_pictures_are_mapped_from_their_range(kind, values, dtype, span):
    def read(*range):
        return convert(values.astype(dtype), (24, 24), 1, kind, range)[..., 0]

    low, high = span
    with pytest.raises(pictures.TooDeep, match='give --range=LOW,HIGH') as error:
        read()
    assert (error.value.low, error.value.high) == span
    assert np.abs(read(low, high) - RAMP * 255).max() <= 1
    assert np.abs(read(low, (low + high) / 2) - (RAMP * 510).clip(0, 255)).max() <= 1


def tiff(values, zero=1, kind='<i2'):
    """Returns the bytes of a TIFF file of 16-bit numbers, signed as CT scanners make them; zero: 0 if 0 is white."""
    data, (height, width) = values.astype(kind).tobytes(), values.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, zero), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, len(data)), (339, 3, 2 if kind == '<i2' else 1)]
    entries = b''.join(struct.pack('<HHII', tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack('<H', len(tags)) + entries + bytes(4)
    return struct.pack('<2sHI', b'II', 42, 8 + len(data)) + data + directory


def test_signed_numbers_do_not_wrap():
    file = io.BytesIO(tiff(RAMP * 2000 - 1000))
    found = pictures.convert(file, (24, 24), 1, (-1000, 1000))
    assert np.abs(found[..., 0] - RAMP * 255).max() <= 1


COLORS = np.stack([RAMP * 4095, RAMP * 100, 4095 - RAMP * 4095], -1)  # 12 bits, as many cameras have.


def test_a_deep_tiff_may_say_that_0_is_white():
    file = io.BytesIO(tiff(65535 - RAMP * 65535, zero=0, kind='<u2'))
    assert np.abs(pictures.convert(file, (24, 24), 1, (0, 65535))[..., 0] - RAMP * 255).max() <= 1


def test_a_large_file_that_is_no_picture_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, 'LARGEST', 1000)
    for start in b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'movie':
        (tmp_path / 'a.png').write_bytes(start + bytes(2000))
        with pytest.raises(ValueError), open(tmp_path / 'a.png', 'rb') as file:
            pictures.convert(file, (8, 8), 3)
        with open(tmp_path / 'a.png', 'rb') as file:
            with pytest.raises(ValueError):
                decoding.strip_metadata(file)
            assert file.tell() <= 1008


@pytest.mark.parametrize('alpha', [False, True])
def test_deep_colors_are_mapped_from_their_range(alpha):
    pixels = np.concatenate([COLORS, np.full_like(COLORS[..., :1], 65535)], -1) if alpha else COLORS
    file = io.BytesIO(fakes.write_png(pixels, 16, 6 if alpha else 2))
    with pytest.raises(pictures.TooDeep) as error:
        pictures.convert(file, (24, 24), 3)
    assert (error.value.low, error.value.high) == (0, 4095)
    assert np.abs(pictures.convert(file, (24, 24), 3, (0, 4095)) - COLORS / 4095 * 255).max() <= 1


def test_what_is_no_number_is_black():
    values = np.array([[np.nan, -np.inf], [np.inf, 0.5]], np.float32)
    with pytest.raises(pictures.TooDeep, match=r'from 0\.5 to 0\.5'):
        convert(values, (2, 2), 1, 'TIFF')
    assert convert(values, (2, 2), 1, 'TIFF', (0, 1)).ravel().tolist() == [0, 0, 255, 128]


# --- Broken metadata ---


def test_text_of_any_size_costs_no_picture():
    pixels = fakes.random_images(1, 8, 8, 3)[0]
    text = b'Comment\0' + b'x' * 3_000_000
    packed = b'Comment\0\0' + zlib.compress(bytes(100_000_000))  # 100 kB that become 100 MB.
    profile = b'icc\0\0' + zlib.compress(bytes(5_000_000))
    for chunk in [(b'tEXt', text), (b'zTXt', packed), (b'iTXt', b'A\0\1\0\0\0' + packed[9:]), (b'iCCP', profile)]:
        file = io.BytesIO(fakes.write_png(pixels, 8, 2, *[chunk] * 30))
        np.testing.assert_array_equal(pictures.convert(file, (8, 8), 3), pixels)


@settings(max_examples=100, deadline=None)
@given(chunk=st.sampled_from([b'eXIf', b'iCCP', b'tEXt', b'zTXt', b'iTXt', b'pHYs', b'gAMA']), junk=st.binary())
def test_rubbish_in_a_pngs_metadata_costs_no_picture(chunk, junk):
    pixels = fakes.random_images(1, 8, 8, 3)[0]
    found = pictures.convert(io.BytesIO(fakes.write_png(pixels, 8, 2, (chunk, junk))), (8, 8), 3)
    np.testing.assert_array_equal(found, pixels)


@settings(max_examples=100, deadline=None)
@given(
    marker=st.sampled_from(range(0xE1, 0xF0)),
    prefix=st.sampled_from(
        [b'', b'Exif\0\0', b'Exif\0\0II*\0\x08\0\0\0', b'MPF\0', b'ICC_PROFILE\0', b'Photoshop 3.0\0']
    ),
    junk=st.binary(max_size=200),
)
def test_rubbish_in_a_jpegs_metadata_costs_no_picture(marker, prefix, junk):
    if marker == 0xEE:  # Adobe's says how colours are stored.
        return
    file = io.BytesIO()
    Image.fromarray(np.full([16, 16, 3], 77, np.uint8)).save(file, 'JPEG')
    content = file.getvalue()
    segment = b'\xff' + bytes([marker]) + struct.pack('>H', 2 + len(prefix + junk)) + prefix + junk
    found = pictures.convert(io.BytesIO(content[:20] + segment + content[20:]), (8, 8), 3)
    assert np.abs(found.astype(int) - 77).max() <= 2


# --- Damage ---


def make_fits(width, height):
    """Returns a black picture in the format FITS."""
    cards = [('SIMPLE', 'T'), ('BITPIX', 8), ('NAXIS', 2), ('NAXIS1', width), ('NAXIS2', height)]
    header = b''.join(b'%-8s= %20s%50s' % (name.encode(), str(value).encode(), b'') for name, value in cards)
    return (header + b'END').ljust(2880) + bytes(width * height)


POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'
Image.fromarray(fakes.random_images(1, 50, 50, 3)[0]).save(JPEG := io.BytesIO(), 'JPEG')
BAD = dict(  # Content, words of the error.
    empty=(b'', 'is no picture of a format that is read'),
    text=(b'not a picture', 'is no picture of a format that is read'),
    cut=(JPEG.getvalue()[:500], '(?i)truncated'),
    bomb=(fakes.make_bomb(50000), 'claims more than 400 megapixels, the limit'),
    smaller_bomb=(fakes.make_bomb(9000), '(?i)truncated'),
    no_pixels=(fakes.make_bomb(100), '(?i)truncated'),
    html=(b'<!DOCTYPE html><html></html>', 'is no picture'),
    fits=(make_fits(8, 8), 'is no picture'),  # Pillow would need any amount of memory, if it were compressed.
    postscript=(POSTSCRIPT, 'is no picture'),
)


@pytest.mark.parametrize('name', BAD)
def test_an_unreadable_picture_says_why(name):
    content, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        pictures.convert(io.BytesIO(content), (8, 8), 3)


def iptc(content):
    """Returns an IPTC file that claims to hold a JPEG."""
    fields = (3, 20, b'\0\x09'), (3, 30, b'\0\x09'), (3, 60, b'\1\0'), (3, 120, b'\5'), (8, 10, content)
    return b''.join(struct.pack('>BBBH', 0x1C, *which, len(data)) + data for *which, data in fields) + bytes(5)


WATCHED = """
import json, sys
from libml.intake import pictures
folder, seen = sys.argv[1], []
pictures.convert(folder + '/a-L.png', (8, 8), 3)  # Imports whatever Pillow needs.
sys.addaudithook(lambda event, args: event.startswith(('open', 'subproc', 'os.')) and seen.append((event, args[0])))
for path in pictures.list_files(folder)[0]:
    try:
        pictures.convert(folder + '/' + path, (8, 8), 3)
    except ValueError:
        pass
seen = [(event, str(path)) for event, path in seen if event not in ('os.listdir', 'os.scandir')]
print(json.dumps(seen))
"""


def test_no_picture_starts_a_program_or_opens_another_file(tmp_path, server):
    Image.init()
    put(tmp_path, 'watched.py', content=WATCHED.encode())
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for ending, kind in Image.registered_extensions().items():
        for mode in ('RGB', 'L', '1', 'P') if kind in Image.SAVE else ():
            with contextlib.suppress(Exception):  # Not every format takes every mode.
                Image.new(mode, (64, 64)).save(folder / ('a-%s%s' % (mode, ending)))
    for i, content in enumerate((POSTSCRIPT, iptc(POSTSCRIPT), iptc(fakes.make_bomb(9)))):
        put(folder, *('%d%s' % (i, ending) for ending in ('', *Image.registered_extensions())), content=content)
    opened = json.loads(server.run(str(tmp_path / 'watched.py'), folder).stdout)
    assert {event for event, _ in opened} == {'open'} and len(opened) > 100
    assert {os.path.dirname(path) for _, path in opened} == {str(folder)}


MEASURED = """
import resource, sys
from libml.intake import pictures
for path in sys.argv[1:]:
    pictures.convert(path, (8, 8), 3, max_megapixels=99)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_a_large_picture_takes_little_more_memory_than_its_pixels(tmp_path, server):
    """A palette, transparent: in full colours it would take 16 times as much."""
    image = Image.new('P', (8000, 8000))
    image.putpalette([10, 200, 30] * 256)
    image.crop((0, 0, 8, 8)).save(tmp_path / 'small.png')
    image.save(tmp_path / 'large.png', transparency=5, compress_level=1)
    put(tmp_path, 'measured.py', content=MEASURED.encode())
    done = server.run(*(str(tmp_path / name) for name in ('measured.py', 'small.png', 'large.png')))
    base, large = map(int, done.stdout.split())
    assert large - base < 64 + 150


@pytest.mark.parametrize(
    ('mode', 'kind'), [('RGB', 'PNG'), ('LA', 'PNG'), ('L', 'TIFF'), ('F', 'TIFF'), ('RGB', 'JPEG')]
)
def test_a_large_picture_looks_like_one_that_is_not(monkeypatch, mode, kind):
    grey = np.asarray(photo(500, 400).convert('L'))
    image = Image.fromarray(grey.astype(np.float32)) if mode == 'F' else Image.fromarray(grey).convert(mode)
    whole = convert(image, (24, 20), kind=kind, range=(0, 255)).astype(int)
    monkeypatch.setattr(pictures, 'STRIP', 7000)
    assert (convert(image, (24, 20), kind=kind, range=(0, 255)) == whole).all()
    monkeypatch.setattr(pictures, 'LARGE', 1000)
    smaller = convert(image, (24, 20), kind=kind, range=(0, 255)).astype(int)
    assert np.abs(smaller - whole).max() < 12


def test_a_picture_that_takes_too_much_memory_is_refused():
    Image.new('RGB', (2200, 2200)).save(file := io.BytesIO(), 'WEBP')
    with pytest.raises(ValueError, match=r'takes 0.14 GB of memory to decode, more than 0.13: give a larger --max_meg'):
        pictures.convert(file, (8, 8), 3, max_megapixels=20)
    pictures.convert(file, (8, 8), 3, max_megapixels=90)


def test_what_a_header_does_not_say_of_a_pictures_size_is_counted():
    tags = {256: 32, 257: 32, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20000, 323: 20000, 324: 8, 325: 8}  # One tile.
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
    tiled = b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + bytes(4)
    with pytest.raises(decoding.TooLarge, match=r'takes 0\.87 GB'):
        pictures.convert(io.BytesIO(tiled), (8, 8), 3, max_megapixels=20)
    Image.new('RGB', (32, 32)).save(nested := io.BytesIO(), 'ICO')
    image = decoding.open_picture(nested)
    assert decoding.count_bytes(image, image.size, 100) == decoding.find_limit(100) == 5e8  # So it is read alone.


@pytest.mark.parametrize('name', ['EACCES', 'EIO', 'ESTALE', 'EMFILE', 'ENOMEM'])
@pytest.mark.parametrize('late', [False, True])
def test_what_the_system_refuses_to_read_is_not_called_damaged(tmp_path, monkeypatch, name, late):
    fakes.save_picture(str(tmp_path / 'a.png'), np.zeros([8, 8, 3], np.uint8))
    number = getattr(errno, name)

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*(('PIL.ImageFile.ImageFile.load', refuse) if late else ('builtins.open', refuse)))
    with pytest.raises(
        utils.Error, match=r'a.png may be whole, but the system does not let it be read now \(%s' % os.strerror(number)
    ):
        list(pictures.convert_all([str(tmp_path / 'a.png')], (8, 8), 3))


# --- Many ---


def test_pictures_come_in_order_and_few_are_held(tmp_path, monkeypatch):
    paths = [str(tmp_path / ('%d.png' % i)) for i in range(60)]
    for i, path in enumerate(paths):
        fakes.save_picture(path, np.full([8, 8, 1], i, np.uint8))
    put(tmp_path, '7.png')
    os.remove(paths[9])
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1})
    convert, held = pictures.convert, []

    def slow(path, *args):
        time.sleep(0.001 * (hash(path) % 3))
        held.append(path)
        return convert(path, *args)

    monkeypatch.setattr(pictures, 'convert', slow)
    found = pictures.convert_all(iter(paths), (8, 8), 1)
    for i, image in enumerate(found):
        assert isinstance(image, ValueError) if i in (7, 9) else image.max() == i
        assert i != 7 or str(image) == 'is no picture of a format that is read'
        assert len(held) <= i + 12
    assert i == 59


# --- The files of a folder ---


def test_files_without_an_ending_are_looked_into(tmp_path):
    for i, kind in enumerate(['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'JPEG2000', 'AVIF']):
        Image.new('RGB', (8, 8)).save(tmp_path / ('%d.2.840' % i if i % 2 else str(i)), kind)
    put(tmp_path, 'README', 'empty', content=b'')
    found, unused = pictures.list_files(str(tmp_path))
    assert len(found) == 8 and unused == {'README': pictures.OTHER, 'empty': pictures.OTHER}
    images = list(pictures.convert_all([tmp_path / name for name in found], (8, 8), 3))
    assert not [image for image in images if isinstance(image, ValueError)]


ENDINGS = 'PNG', 'jfif', 'jpe', 'jp2', 'tga', 'avif', 'Tif', 'apng', 'webp', 'ico', 'mpo', 'psd', 'qoi', 'icns'
REASONS = {
    pictures.HIDDEN: ['.DS_Store', 'a/.hidden/x.png', 'a/._x.png'],
    pictures.SYSTEM: ['a/@eaDir/x.png/SYNOPHOTO_THUMB_M.jpg', '__MACOSX/a/._x.png', '#recycle/x.png']
    + ['a/.ipynb_checkpoints/x-checkpoint.png'],
    pictures.OTHER: ['a/Thumbs.db', 'a/notes.txt', 'a/x.png.bak'],
    pictures.UNKNOWN_FORMAT: ['a/x.heic', 'a/x.HEIF', 'a/x.cr2', 'a/x.eps', 'a/x.fits'],
}


def test_pictures_are_told_by_their_endings_and_others_get_a_reason(tmp_path):
    names, reasons = sorted('a.' + ending for ending in ENDINGS), {}
    for reason, others in REASONS.items():
        put(tmp_path, *others)
        reasons.update(dict.fromkeys(others, reason))
    for name in 'pipe', 'pipe.png':  # They are never opened: it would wait.
        os.mkfifo(tmp_path / name)
        reasons[name] = pictures.OTHER
    for name, target in ('x.png', '/nowhere/x.png'), ('folder', 'missing'), ('through', 'a/notes.txt/x'):
        os.symlink(target, tmp_path / name)
        reasons[name] = pictures.NOWHERE
    put(tmp_path, *names)
    assert pictures.list_files(str(tmp_path)) == (names, reasons)


def test_links_are_followed(tmp_path):
    put(tmp_path, 'store/deep/x.png', 'store/y.png', 'pics/real/z.png')
    os.symlink(tmp_path / 'store', tmp_path / 'pics' / 'linked')
    os.symlink(tmp_path / 'store' / 'deep', tmp_path / 'pics' / 'again')
    os.symlink(tmp_path / 'store' / 'y.png', tmp_path / 'pics' / 'w.png')
    expected = ['again/x.png', 'linked/deep/x.png', 'linked/y.png', 'real/z.png', 'w.png']
    assert pictures.list_files(str(tmp_path / 'pics')) == (expected, {})


@pytest.mark.parametrize('target', ['..', '../..', '.', 'loop'])
def test_links_in_a_circle_are_an_error(tmp_path, target):
    put(tmp_path, 'pics/a/x.png')
    os.symlink(target, tmp_path / 'pics' / 'a' / 'loop')
    with pytest.raises(utils.Error, match=r'loop.*(leads to a folder that holds it|leads to itself): remove'):
        pictures.list_files(str(tmp_path / 'pics'))


def test_links_that_lead_to_a_folder_in_very_many_ways_are_an_error(tmp_path):
    put(tmp_path, 'pics/d30/x.png')
    for i in range(30):
        os.mkdir(tmp_path / 'pics' / ('d%d' % i))
        for name in 'ab':
            os.symlink('../d%d' % (i + 1), tmp_path / 'pics' / ('d%d' % i) / name)
    with pytest.raises(utils.Error, match=r'lead to one folder in more than 1000 ways, the last one .*pics/d'):
        pictures.list_files(str(tmp_path / 'pics'))


@pytest.mark.parametrize('replace', [os.mkfifo, functools.partial(os.symlink, '/dev/zero')])
def test_what_takes_the_place_of_a_listed_file_is_not_waited_for(tmp_path, replace):
    path = str(tmp_path / 'x')
    replace(path)
    assert not pictures._sniff(path)
    (found,) = pictures.convert_all([path], (8, 8), 3)
    assert 'is no file' in str(found)


def test_folders_may_be_deep(tmp_path):
    folders = [str(tmp_path) + '/d' * depth for depth in range(1, 1201)]
    for folder in folders:
        os.mkdir(folder)
    put(folders[-1], 'x.png')
    (found,), unused = pictures.list_files(str(tmp_path))
    assert found == 'd/' * 1200 + 'x.png' and not unused
    os.remove(folders[-1] + '/x.png')
    for folder in reversed(folders):  # What clears up after the tests would go too deep.
        os.rmdir(folder)


def test_any_name_can_be_shown(tmp_path):
    put(tmp_path, 'a\udcff\n.txt')
    (name,) = pictures.list_files(str(tmp_path))[1]
    assert utils.escape(name) == r'a\udcff\n.txt'
    assert utils.escape('\x1b[31m é\u202e') == r'\x1b[31m é\u202e'
