# SPDX-License-Identifier: Apache-2.0
"""The one exception whose message is meant for the person at the terminal.

Entry points print it as a single line and exit with status 2; anything else keeps its stack
trace, because it is a bug.
"""


class UserError(Exception):
    """What the user gave cannot work. One line: the thing, the place and the remedy."""
