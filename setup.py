"""Installs libml and what it needs: pip install -e .  (extras: gpu, benchmark, test)."""

import pathlib
import re

from setuptools import setup

# The version stands in one place. Importing libml is avoided: what it needs is not installed yet.
SOURCE = pathlib.Path(__file__).with_name('libml').joinpath('__init__.py').read_text(encoding='utf-8')

setup(
    name='mixmatch',
    version=re.search("^__version__ = '(.*)'", SOURCE, re.MULTILINE)[1],
    description='MixMatch (Berthelot et al., NeurIPS 2019) and every ablation of it, on current TensorFlow',
    license='Apache-2.0',
    packages=['libml', 'libml.cli', 'libml.intake', 'libml.running', 'ablation'],
    package_data={'libml': ['py.typed', 'review.html']},
    python_requires='>=3.10',  # Tried: 3.10 to 3.13. For 3.14, TensorFlow has a release candidate only.
    install_requires=[  # The lower bounds are the oldest that were tried, together.
        'tensorflow>=2.18',  # The graph and its session. Tried: 2.18 to 2.21, with equal bits.
        'absl-py',  # Command-line flags.
        'easydict',  # Results with named fields, as in the published code.
        'numpy>=1.26',
        'pooch>=1.6',  # Downloads the published archives, whole and verified; SciPy and scikit-image use it.
        'tqdm>=4.66',  # Progress bars.
        'tensorboard',  # Reads the event files back, and shows them.
        'pillow>=11.3',  # Decodes and encodes pictures outside the graph.
        'scikit-learn>=1.3',  # The bundled digits dataset.
        'scipy>=1.11',  # Reads SVHN's .mat files; Student's t of scripts/report.py.
        'matplotlib>=3.7',  # The pictures of scripts/evaluate.py and scripts/report.py.
        'pandas>=2',  # The tables of scripts/report.py: runs grouped by row and split.
    ],
    extras_require={
        'gpu': ['tensorflow[and-cuda]>=2.18'],  # The CUDA libraries that TensorFlow's own wheel is built for.
        'benchmark': ['torch'],  # scripts/benchmark.py measures an update in PyTorch beside ours.
        'test': [
            'pytest',
            'pytest-timeout',  # A test that hangs fails, and says where.
            'pytest-xdist',  # Tests on several cores.
            'hypothesis',  # Property-based tests.
            'ruff',  # Lint and format.
            'nbclient',  # Runs the notebook of examples/; of Jupyter.
            'ipykernel',  # The Python that the notebook runs in; of Jupyter.
        ],
    },
)
