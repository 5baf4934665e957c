"""Small archives in the layouts of the published ones, pictures, data to train on, hosts, harm to files."""

import contextlib
import io
import os
import resource
import socket
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image
from scipy.io import savemat

from libml import records
from scripts import create_datasets, create_split


def random_images(n, height, width, colors, seed=0):
    """Returns random uint8 [n, height, width, colors]."""
    return np.random.RandomState(seed).randint(0, 256, [n, height, width, colors]).astype(np.uint8)


def tar_gz(path, members):
    """Writes a .tar.gz of {name: bytes, or a tarfile.TarInfo without content}."""
    with tarfile.open(path, 'w:gz', compresslevel=1) as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info is content:
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def cifar_rows(images, *labels):
    """The binary layout of CIFAR: per picture its labels, then its three planes."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.stack(labels, 1).astype(np.uint8), planes], 1).tobytes()


def cifar10(folder, first=None, without=None, each=4):
    """Writes cifar-10-binary.tar.gz; returns {part: (images, labels)}.

    `first` are members to begin with, which replace those of the same name; `without` is one to leave out.
    """
    names = ['data_batch_%d.bin' % i for i in range(1, 6)] + ['test_batch.bin']
    sets = [(random_images(each, 32, 32, 3, i), np.arange(i, i + each) % 10) for i in range(6)]
    members = {'cifar-10-batches-bin/' + name: cifar_rows(*pair) for name, pair in zip(names, sets, strict=True)}
    members.pop('cifar-10-batches-bin/%s' % without, None)
    # Not in the order of their names, as in the published archive.
    members = {**(first or {}), **{name: members[name] for name in sorted(members, reverse=True)}, **(first or {})}
    tar_gz(os.path.join(folder, 'cifar-10-binary.tar.gz'), members)
    train = [np.concatenate(part) for part in zip(*sets[:5], strict=True)]
    return {'train': train, 'test': sets[5]}


def cifar100(folder):
    """Writes cifar-100-binary.tar.gz; returns {part: (images, fine labels)}."""
    sets = {part: (random_images(6, 32, 32, 3, i), np.arange(6) * 19 + i) for i, part in enumerate(('train', 'test'))}
    members = {
        'cifar-100-binary/%s.bin' % part: cifar_rows(images, labels // 5, labels)
        for part, (images, labels) in sets.items()
    }
    tar_gz(os.path.join(folder, 'cifar-100-binary.tar.gz'), members)
    return sets


def svhn(folder, n=12):
    """Writes the three .mat files, labels 1 to 10; returns {part: (images, labels as stored, from 0)}."""
    sets = {}
    for i, part in enumerate(('train', 'test', 'extra')):
        images, labels = random_images(n, 32, 32, 3, i), (np.arange(n) + i) % 10
        y = (labels + 1).astype(np.uint8)[:, None]
        path = os.path.join(folder, part + '_32x32.mat')
        savemat(path, {'X': images.transpose(1, 2, 3, 0), 'y': y}, do_compression=True)
        sets[part] = images, labels
    return sets


def stl10(folder, each=200, unlabeled=30):
    """Writes stl10_binary.tar.gz; returns {part: (images, labels)} and the ten folds (list of lists)."""
    sets = {
        'train': (random_images(10 * each, 96, 96, 3, 0), np.arange(10 * each) * 7 % 10),
        'test': (random_images(11, 96, 96, 3, 1), np.arange(11) % 10),
        'unlabeled': (random_images(unlabeled, 96, 96, 3, 2), np.full(unlabeled, -1)),
    }
    folds = [np.random.RandomState(i).permutation(10 * each)[:1000].tolist() for i in range(10)]
    text = ''.join(' '.join(map(str, fold)) + ' \n' for fold in folds)
    members = {'stl10_binary/fold_indices.txt': text.encode()}
    for part, (images, labels) in sets.items():
        # Planes by columns: [n, C, W, H].
        members['stl10_binary/%s_X.bin' % part] = images.transpose(0, 3, 2, 1).tobytes()
        if part != 'unlabeled':
            members['stl10_binary/%s_y.bin' % part] = (labels + 1).astype(np.uint8).tobytes()
    tar_gz(os.path.join(folder, 'stl10_binary.tar.gz'), members)
    return sets, folds


def save_picture(path, pixels):
    """Saves uint8 [H, W, C] in the format that the path's ending names."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


# --- Record files ---


def encode_png(image):
    """Encodes one image, uint8 [H, W, C], as PNG bytes."""
    return records.encode(image[None])[0]


def write_png(pixels, bits, color_type, *more, size=None):
    """Returns the bytes of a PNG of [H, W, C], with `more` chunks, (type, content), before the pixels.

    The header may claim another size = (width, height).
    """
    rows = b''.join(b'\0' + row.astype('>u%d' % (bits // 8)).tobytes() for row in pixels)
    header = struct.pack('>IIBBBBB', *(size or pixels.shape[1::-1]), bits, color_type, 0, 0, 0)
    chunks = [(b'IHDR', header), *more, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    made = [struct.pack('>I', len(c)) + k + c + struct.pack('>I', zlib.crc32(k + c)) for k, c in chunks]
    return records.PNG_SIGNATURE + b''.join(made)


def make_bomb(side):
    """Returns a PNG of a few bytes that claims side x side pixels."""
    return write_png(np.zeros([1, 1, 3]), 8, 2, size=(side, side))


# --- Harm ---


def cut(path):
    """Takes the last bytes of a file."""
    os.truncate(path, os.path.getsize(path) - 7)


def flip(path):
    """Flips a bit in the middle of a file."""
    with open(path, 'r+b') as file:
        content = bytearray(file.read())
        content[len(content) // 2] ^= 1
        file.seek(0)
        file.write(content)


def empty(path):
    os.truncate(path, 0)


def limit_files(size):
    """Lets no file of this process grow beyond `size` bytes from here on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def digits(folder, seed=1, size=20):
    """Installs scikit-learn's digits, which are real, with one split."""
    folder = str(folder)
    os.makedirs(folder)
    create_datasets.install('digits', folder)
    create_split.make('digits', size=size, seed=seed, data_dir=folder)


def addresses(count):
    """Returns addresses of this machine, `<name>:<port>`, whose ports are free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return ['127.0.0.1:%d' % s.getsockname()[1] for s in sockets]
