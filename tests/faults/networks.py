"""Machines with a network of their own: network namespaces of this one, joined by a bridge.

It wants `ip` (iproute2) and the rights to make namespaces. Nothing of the network that this machine
has is touched: the bridge is in a namespace, too.
"""

import contextlib
import itertools
import os
import shutil
import subprocess

PORT = 2222
# Networks that this process has made: several stand at a time.
_NUMBERS = itertools.count()


def why_not() -> str:
    """Why there can be no network here; '' where there can."""
    if shutil.which('ip') is None:
        return 'the program ip (iproute2) is not installed'
    try:
        Network(1).close()
    except subprocess.CalledProcessError as error:
        return f'network namespaces cannot be made here: {error.stderr.strip()}'
    return ''


def _ip(*words):
    subprocess.run(['ip', *words], check=True, capture_output=True, text=True)


class Network:
    """Machines 0 to `number` - 1, each with one link to the bridge."""

    def __init__(self, number: int):
        name = f'gan-mrcnn-{os.getpid()}-{next(_NUMBERS)}'
        self._names = [f'{name}-{i}' for i in range(number)]
        self._bridge = f'{name}-bridge'
        self.addresses = [f'{_address(i)}:{PORT}' for i in range(number)]
        try:
            self._make()
        except subprocess.CalledProcessError:
            self.close()
            raise

    def _make(self):
        _ip('netns', 'add', self._bridge)
        _ip('-n', self._bridge, 'link', 'add', 'bridge', 'type', 'bridge')
        _ip('-n', self._bridge, 'link', 'set', 'bridge', 'up')
        for i, name in enumerate(self._names):
            _ip('netns', 'add', name)
            _ip(
                *('-n', self._bridge, 'link', 'add', f'to{i}', 'type', 'veth'),
                *('peer', 'name', 'eth0', 'netns', name),
            )
            _ip('-n', self._bridge, 'link', 'set', f'to{i}', 'master', 'bridge', 'up')
            _ip('-n', name, 'address', 'add', f'{_address(i)}/24', 'dev', 'eth0')
            for link in ('lo', 'eth0'):
                _ip('-n', name, 'link', 'set', link, 'up')

    def within(self, machine: int) -> list[str]:
        """What to write before a command so that it runs there."""
        return ['ip', 'netns', 'exec', self._names[machine]]

    def cut(self, machine: int) -> None:
        """No packet comes to it or from it any more; neither side is told."""
        _ip('-n', self._bridge, 'link', 'set', f'to{machine}', 'down')

    def mend(self, machine: int) -> None:
        _ip('-n', self._bridge, 'link', 'set', f'to{machine}', 'up')

    def close(self) -> None:
        """Removes it, and with it what is left of its links."""
        for name in (*self._names, self._bridge):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip('netns', 'del', name)


def _address(machine):
    return f'10.77.0.{machine + 1}'
