# SPDX-License-Identifier: Apache-2.0
"""The command `gan-mrcnn`, also as `python -m gan_mrcnn`: one word for each job."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn, Optional

from gan_mrcnn import __version__
from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

PROGRAM = 'gan-mrcnn'
# One module of `gan_mrcnn.commands` each, and its line of help.
COMMANDS = {
    'train': 'trains a network',
    'evaluate': 'scores a run, an export or a file of predictions',
    'predict': 'finds the objects in image files',
    'import': 'makes a data set of what an annotation tool exported',
    'check': 'counts what a data set holds and names its problems',
    'records': 'converts images for training ahead of it, on one machine or many',
    'compare': 'puts evaluated runs side by side, with intervals',
    'ablate': "trains and compares arms with several seeds, such as the paper's tables",
    'replay': 'repeats a step whose loss was not finite, and says where it went wrong',
    'export': 'writes a SavedModel for TF Serving',
    'publish': 'writes weights that can be passed on',
    'client': 'asks a running TF Serving',
    'demo': 'a page in the browser to try a model',
}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Runs the command that the first argument names, and ends the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ('-h', '--help', 'help'):
        print(_help())
        sys.exit(0 if arguments else 2)
    if arguments[0] == '--version':
        print(f'{PROGRAM} {__version__}')
        sys.exit(0)
    name, *flags = arguments
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f'did you mean {nearest[0]}?' if nearest else f'there are {", ".join(COMMANDS)}'
        cli.run_main(lambda: _refuse(f'{name} is no command; {hint}'), PROGRAM)
    run(name, flags, f'{PROGRAM} {name}')


def run(name: str, arguments: Sequence[str], program: str) -> None:
    """Runs the command `name` and ends the process; `program` is how messages call it."""
    stopped = getattr(_module(name), 'STOPPED', 'stopped')

    def main():
        command, options = parse(name, arguments, program)
        command.main(options)

    cli.run_main(main, program, stopped)


def parse(name: str, arguments: Sequence[str], program: str):
    """The module of the command `name`, and its flags."""
    command = _module(name)
    parser = _Parser(
        prog=program,
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_flags(parser)
    options, forwarded = parser.parse_known_args(arguments)
    if getattr(command, 'FORWARDS_FLAGS', False):
        options.forwarded = forwarded
    elif forwarded:
        parser.error(f'unrecognized arguments: {" ".join(forwarded)}')
    return command, options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(cli.one_line(message))


def _module(name: str):
    return importlib.import_module(f'gan_mrcnn.commands.{name}')


def _refuse(message: str) -> None:
    raise UserError(message)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {text}' for name, text in COMMANDS.items()]
    return '\n'.join(
        [
            f'usage: {PROGRAM} COMMAND [flags]',
            '',
            *lines,
            '',
            f'{PROGRAM} COMMAND --help lists the flags of a command.',
        ]
    )


if __name__ == '__main__':
    main()
