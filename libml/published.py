"""The published datasets, a row of PUBLISHED each: what they are, their splits and their archives."""

import dataclasses
import re

from libml import utils
from libml.family import NAME, Family


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file: where it is, and its sha256."""

    url: str
    sha256: str

    @property
    def name(self):
        return self.url.rsplit('/', 1)[1]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published dataset.

    Attributes:
        family: Family.
        sizes: of the splits that create_split.py --all makes: the paper's; for digits, which it lacks, some to try.
        files: {record file: (number of pictures, layout, Archive or None, arguments)}. The layout is the name of a
            function in create_datasets.READERS, which reads the pictures and takes the arguments by name.
    """

    family: Family
    sizes: tuple
    files: dict


TORONTO = 'https://www.cs.toronto.edu/~kriz/'
CIFAR10 = Archive(
    TORONTO + 'cifar-10-binary.tar.gz', 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
)
CIFAR100 = Archive(
    TORONTO + 'cifar-100-binary.tar.gz', '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec'
)
STANFORD = 'http://ufldl.stanford.edu/housenumbers/'
SVHN_TRAIN = Archive(STANFORD + 'train_32x32.mat', '435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8')
SVHN_TEST = Archive(STANFORD + 'test_32x32.mat', 'cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b')
SVHN_EXTRA = Archive(STANFORD + 'extra_32x32.mat', 'a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3')
STL10 = Archive(
    'http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz',
    'f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866',
)

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
CIFAR100_CLASSES = tuple(  # The fine labels.
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 (a list would take 100 lines.)
)
SVHN_CLASSES = tuple('1234567890')  # The archive counts from 1, and its class 10 is the digit 0.
STL10_CLASSES = ('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck')

SVHN_FILES = {
    'svhn-train': (73257, 'svhn', SVHN_TRAIN, {}),
    'svhn-test': (26032, 'svhn', SVHN_TEST, {}),
    'svhn_noextra-test': (26032, 'svhn', SVHN_TEST, {}),  # The same: each dataset reads a file of its own name.
}
PUBLISHED = {
    'cifar10': Published(
        Family(32, 32, 3, 10, mirror=True, shift=4, classes=CIFAR10_CLASSES),
        (250, 500, 1000, 2000, 4000),
        {
            'cifar10-train': (50000, 'cifar', CIFAR10, dict(names=['data_batch_%d.bin' % i for i in range(1, 6)])),
            'cifar10-test': (10000, 'cifar', CIFAR10, dict(names=['test_batch.bin'])),
        },
    ),
    'cifar100': Published(
        Family(32, 32, 3, 100, mirror=True, shift=4, classes=CIFAR100_CLASSES),
        (10000,),
        {  # Two labels: the coarse one, then the fine one.
            'cifar100-train': (50000, 'cifar', CIFAR100, dict(names=['train.bin'], label_bytes=2, nclass=100)),
            'cifar100-test': (10000, 'cifar', CIFAR100, dict(names=['test.bin'], label_bytes=2, nclass=100)),
        },
    ),
    'svhn_noextra': Published(
        Family(32, 32, 3, 10, mirror=False, shift=4, source='svhn', classes=SVHN_CLASSES),
        (250, 500, 1000, 2000, 4000),
        SVHN_FILES,
    ),
    'svhn': Published(
        Family(32, 32, 3, 10, mirror=False, shift=4, parts=('train', 'extra'), classes=SVHN_CLASSES),
        (250, 500, 1000, 2000, 4000),
        {**SVHN_FILES, 'svhn-extra': (531131, 'svhn', SVHN_EXTRA, {})},
    ),
    'stl10': Published(
        Family(96, 96, 3, 10, mirror=True, shift=12, parts=('train', 'unlabeled'), classes=STL10_CLASSES),
        (1000, 5000),
        {
            'stl10-train': (5000, 'stl10', STL10, dict(part='train')),
            'stl10-test': (8000, 'stl10', STL10, dict(part='test')),
            'stl10-unlabeled': (100000, 'stl10', STL10, dict(part='unlabeled', labeled=False)),
        },
    ),
    # The digits come block by block: each block begins with 0 to 9 three times over, as a form that one writer fills
    # in. The first ten blocks are for training; the last four, from other hands as far as the file tells, for testing.
    'digits': Published(
        Family(8, 8, 1, 10, mirror=False, shift=1),
        (20, 50, 100),
        {
            'digits-train': (1287, 'digits', None, dict(stop=1287)),
            'digits-test': (510, 'digits', None, dict(start=1287)),
        },
    ),
}
FAMILIES = {name: row.family for name, row in PUBLISHED.items()}


def check_new_name(name):
    """Raises utils.Error unless a dataset of the user's own can bear a name: well-formed, not of the published ones."""
    text = 'name=%s is not allowed: take letters, digits, _ and - (not first), and none of %s'
    utils.refuse(name in FAMILIES or not re.fullmatch(NAME, name), text, utils.escape(name), ', '.join(FAMILIES))
