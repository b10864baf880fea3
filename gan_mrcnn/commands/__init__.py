# SPDX-License-Identifier: Apache-2.0
"""One module per word of `gan-mrcnn`: its flags, and the call that does the job.

A module has `add_flags`, `main`, and a docstring whose first line is its line of help. It imports
nothing heavy before `main`, so that --help and mistakes answer at once. `FORWARDS_FLAGS` says that
flags which it does not know are kept, as `options.forwarded`, for another command; `STOPPED` is
what Ctrl-C is answered with, where that is more than one word.
"""
