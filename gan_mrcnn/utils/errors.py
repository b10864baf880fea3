# SPDX-License-Identifier: Apache-2.0
"""The one exception whose message is meant for the user at the terminal.

Commands print it as a single line and exit with status 2; anything else keeps its stack
trace, because it is a bug.
"""


class UserError(Exception):
    """The user's input cannot work. One line: what is wrong, where, and the fix."""


class UnfinishedError(UserError):
    """A process or machine failed, not the input. What is finished stays good."""
