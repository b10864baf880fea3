# SPDX-License-Identifier: Apache-2.0
"""Compiles PrRoIPool and NMS for the TensorFlow that is installed, into one library.

    python custom_ops/prroi_pool/build.py [--cuda auto|yes|no]

`make` and `pip install` run it, and so does the first use where no library is there yet. It takes a
C++ compiler (g++, or the one that CXX names); with nvcc and a TensorFlow made for CUDA the library
holds the GPU's kernels too. TensorFlow's own flags are asked for, never written down here.

The library's name carries the version of TensorFlow, whose C++ interface changes with each, and a
digest of the sources, so that a library of another TensorFlow or of older sources is never loaded.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from typing import Optional

_PACKAGE = pathlib.Path(__file__).resolve().parent
_SOURCES = (_PACKAGE / 'cc', _PACKAGE.parent / 'nms' / 'cc')

# Fused multiply-add where the instruction set has it.
_KERNEL_FLAGS = ['-O3', '-ffp-contract=fast']
# NMS gives the bits of TensorFlow's own, which rounds a product before it adds.
_NMS_FLAGS = ['-O3', '-ffp-contract=off']
# The same kernels once per instruction set, chosen when they run. '' stands for what every
# processor of the architecture has.
_X86_FLAGS = {
    'avx2': ['-mavx2', '-mfma'],
    'avx512': [
        *('-mavx512f', '-mavx512vl', '-mavx512bw', '-mavx512dq', '-mfma'),
        '-mprefer-vector-width=512',
    ],
}


# Volta to Hopper. CUDA 13 has left out sm_70.
_GPUS = ('70', '75', '80', '86', '89', '90')
# As in the extra `gpu` of setup.py.
NVCC_REMEDY = "pip install 'cuda-toolkit[nvcc,cccl]==13.0.*' brings it, or NVIDIA's CUDA toolkit"


class BuildError(Exception):
    """The library cannot be made here; the message says why in one line."""


def library_name(cuda: bool) -> str:
    """File name of the library for the installed TensorFlow and the present sources."""
    import tensorflow as tf

    digest = hashlib.sha256()
    sources = [path for folder in _SOURCES for path in sorted(folder.iterdir())]
    for path in [pathlib.Path(__file__), *sources]:
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    device = '-cuda' if cuda else ''
    return f'prroi_pool-tf{tf.__version__}{device}-{digest.hexdigest()[:8]}.so'


def folders() -> list[pathlib.Path]:
    """Where libraries are looked for: beside the sources, or in the user's cache."""
    cache = os.path.expanduser(os.environ.get('GAN_MRCNN_CACHE', '~/.cache/gan_mrcnn'))
    if cache.startswith('~'):
        # A user of a container who has no home folder.
        return [_PACKAGE]
    return [_PACKAGE, pathlib.Path(cache) / 'ops']


def find_library() -> Optional[pathlib.Path]:
    """The library for the installed TensorFlow, with the GPU's kernels if there are two."""
    for cuda in (True, False):
        for folder in folders():
            path = folder / library_name(cuda)
            if path.is_file():
                return path
    return None


def failure_log() -> pathlib.Path:
    """Where the compiler's messages are kept after a failure, so that it is not tried each time."""
    name = pathlib.Path(library_name(False)).with_suffix('.failed.txt')
    return _writable_folder() / name


def find_compiler() -> Optional[str]:
    """Path of the C++ compiler."""
    return shutil.which(os.environ.get('CXX', 'g++')) or shutil.which('c++')


def find_nvcc() -> Optional[str]:
    """Path of CUDA's compiler: the machine's, or that of the Python package nvidia-cuda-nvcc."""
    folders = [f'{os.environ.get("CUDA_HOME", "/usr/local/cuda")}/bin']
    packages = importlib.util.find_spec('nvidia')
    for place in (packages and packages.submodule_search_locations) or ():
        folders += map(str, sorted(pathlib.Path(place).glob('cu*/bin')))
    return shutil.which('nvcc') or shutil.which('nvcc', path=os.pathsep.join(folders))


def build_library(cuda: str = 'auto', folder: Optional[pathlib.Path] = None) -> pathlib.Path:
    """Compiles and links; replaces what the folder has of other sources for this TensorFlow.

    Args:
      cuda: 'yes', 'no', or 'auto': with nvcc and a TensorFlow that was made for CUDA.
      folder: where to; the first of `folders()` that can be written to.

    Returns:
      Path of the library.

    Raises:
      BuildError: no compiler, or it failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError('there is no C++ compiler: install g++, or name another by CXX')
    folder = folder or _writable_folder()
    with_cuda = _wants_cuda(cuda)
    try:
        path = _build(compiler, folder, with_cuda)
    except BuildError as error:
        if not with_cuda or cuda == 'yes':
            raise
        print(f'PrRoIPool is built without CUDA: {error}', file=sys.stderr)
        path = _build(compiler, folder, False)
    current = (library_name(True), library_name(False))
    version = current[0].partition('-cuda-')[0]
    for other in folder.glob(f'{version}-*'):
        if other.name not in current:
            other.unlink()
    return path


def _build(compiler, folder, with_cuda):
    path = folder / library_name(with_cuda)
    with tempfile.TemporaryDirectory() as scratch:
        commands = _compile_commands(compiler, pathlib.Path(scratch), with_cuda)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        objects = [command[-1] for command in commands]
        library = pathlib.Path(scratch) / path.name
        _run(_link_command(compiler, with_cuda, objects, library))
        # Copied beside and renamed: another process never sees half a library.
        partial = path.with_name(f'{path.name}.{os.getpid()}.part')
        shutil.copy(library, partial)
        os.replace(partial, path)
    return path


def _wants_cuda(cuda: str) -> bool:
    import tensorflow as tf

    if cuda == 'yes' and not find_nvcc():
        raise BuildError(f'there is no nvcc: {NVCC_REMEDY}; or leave --cuda out')
    return cuda != 'no' and bool(find_nvcc()) and tf.test.is_built_with_cuda()


def _writable_folder() -> pathlib.Path:
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BuildError(f'none of {", ".join(map(str, folders()))} can be written to')


def _compile_commands(compiler, scratch, with_cuda):
    """One command per source file, each ending with its object file."""
    import tensorflow as tf

    is_x86 = platform.machine().lower() in ('x86_64', 'amd64')
    common = [compiler, '-std=c++17', '-fPIC', '-fvisibility=hidden']
    kernels = {'baseline': []}
    definitions = []
    if is_x86:
        kernels.update(_X86_FLAGS)
        definitions = ['-DPRROI_POOL_X86']
    if with_cuda:
        definitions += ['-DPRROI_POOL_CUDA', '-DNMS_CUDA']
    pool, nms = _SOURCES

    def command(flags, path):
        return [*flags, '-c', str(path), '-o', str(scratch / f'{path.name}.o')]

    # TensorFlow's flags come last, with the language version that its headers want.
    flags = [*common, '-O2', *definitions, *tf.sysconfig.get_compile_flags(), '-w']
    commands = [command(flags, pool / 'prroi_pool_op.cc'), command(flags, nms / 'nms_op.cc')]
    for target, flags in kernels.items():
        source = pool / f'kernels_cpu_{target}.cc'
        commands.append(command([*common, *_KERNEL_FLAGS, *flags], source))
    commands.append(command([*common, *_NMS_FLAGS], nms / 'nms_cpu.cc'))
    if with_cuda:
        # First: it takes longest.
        flags = nvcc_flags(find_nvcc())
        commands[:0] = [
            command(flags, pool / 'kernels_cuda.cu'),
            command(flags, nms / 'nms_cuda.cu'),
        ]
    return commands


def nvcc_flags(nvcc: str) -> list[str]:
    """The command that compiles the CUDA kernels: machine code for each of `_GPUS` that this nvcc
    knows, and PTX of the newest for what comes after."""
    listed = subprocess.run([nvcc, '--list-gpu-code'], capture_output=True, text=True, check=False)
    gpus = [gpu for gpu in _GPUS if f'sm_{gpu}' in listed.stdout.split()]
    if not gpus:
        raise BuildError(f'{nvcc} knows none of sm_{", sm_".join(_GPUS)}; install CUDA 11 or newer')
    codes = [f'-gencode=arch=compute_{gpu},code=sm_{gpu}' for gpu in gpus]
    codes.append(f'-gencode=arch=compute_{gpus[-1]},code=compute_{gpus[-1]}')
    options = ['-std=c++17', '-O3', '-Xcompiler=-fPIC,-fvisibility=hidden', '-cudart=static']
    return [nvcc, *options, '--threads=0', *codes]


def _link_command(compiler, with_cuda, objects, library):
    import tensorflow as tf

    # CUDA's runtime goes into the library, since TensorFlow brings another version of it; nvcc
    # knows where it is.
    linker = [compiler]
    if with_cuda:
        nvcc = find_nvcc()
        # The Python package has it in `lib`, where its nvcc does not look.
        folder = pathlib.Path(nvcc).resolve().parents[1] / 'lib'
        linker = [nvcc, '-cudart=static', f'-ccbin={compiler}', f'-L{folder}']
    flags = tf.sysconfig.get_link_flags()
    return [*linker, '-shared', *objects, *flags, '-o', str(library)]


def _run(command):
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f'{command[0]} cannot be started: {error}') from error
    if result.returncode:
        log = failure_log()
        log.write_text(f'{" ".join(command)}\n{result.stdout}{result.stderr}', encoding='utf-8')
        raise BuildError(f'{command[0]} failed on {command[-3]}; its messages are in {log}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cuda', choices=('auto', 'yes', 'no'), default='auto')
    parser.add_argument('--folder', type=pathlib.Path, help='where to (default: beside build.py)')
    parser.add_argument('--if_missing', action='store_true', help='not where it is there already')
    flags = parser.parse_args()
    # Lines of TensorFlow and of what it imports about themselves.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    warnings.filterwarnings('ignore', category=FutureWarning, module=r'google\..*')
    try:
        if flags.if_missing and any(
            ((flags.folder or _PACKAGE) / library_name(cuda)).is_file() for cuda in (True, False)
        ):
            return
        print(f'PrRoIPool: built {build_library(flags.cuda, flags.folder)}')
    except (BuildError, ImportError) as error:
        sys.exit(f'PrRoIPool was not built: {error}')


if __name__ == '__main__':
    main()
