# SPDX-License-Identifier: Apache-2.0
"""Monitors the two discriminators and the mask loss for the ways in which a GAN goes wrong.

The losses alone do not show them: a discriminator that wins has a low loss and gives the generator
nothing to learn from, one that has collapsed has a steady one. Each rule looks at the means that
the run reports, has to hold for `PATIENCE` reports in a row, and is said once until it has stopped
holding; one report is a batch or a few.
"""

import math
from collections.abc import Mapping
from typing import Callable, NamedTuple

# Reports in a row.
PATIENCE = 20
# Scores of the box discriminator, between which a game is being played.
WON = (0.98, 0.02)
# Closer than that, it does not tell the boxes apart: its loss is that of a coin. So it is for
# everybody at the start, for up to as many reports.
COLLAPSED = 0.01
LEARNING_REPORTS = 200
# The mask discriminator's distance over the largest that its smoothed value has been.
VANISHED = 0.02
# A mask loss over the lowest that its smoothed value has been; that of guessing is log 2.
RUN_AWAY = 3.0
# Weight of a new report in the smoothed values.
_NEW = 0.05


class Notice(NamedTuple):
    """name: short, for TensorBoard; text: what happens, what it means and the remedy."""

    name: str
    text: str


# Its name, whether it holds, and what to say.
_Rule = tuple[str, bool, Callable[[], str]]


class GanMonitor:
    """Fed with every report of a run; gives the warnings that begin with it.

    Args:
      discriminators_learn: whether their rules hold; frozen ones tell nothing apart, as they are
        meant to.
    """

    def __init__(self, discriminators_learn: bool = True):
        self._discriminators_learn = discriminators_learn
        self._in_a_row: dict[str, int] = {}
        self._reports = 0
        self._advantage = _Smoothed()
        self._distance = _Smoothed()
        self._mask_loss = _Smoothed()

    def update(self, terms: Mapping[str, float]) -> list[Notice]:
        """Looks at one report.

        Args:
          terms: means by name of loss term; those of a baseline lack the discriminators'.

        Returns:
          The warnings that have just come true.
        """
        if not all(math.isfinite(value) for value in terms.values()):
            return []
        self._reports += 1
        rules: list[_Rule] = []
        if 'mask_loss' in terms and terms['mask_loss'] > 0:
            self._mask_loss.update(terms['mask_loss'])
            rules.append(('mask_loss_running_away', self._mask_loss_runs_away(), self._about_mask))
        if self._discriminators_learn and 'box_score_real' in terms:
            real, fake = terms['box_score_real'], terms['box_score_fake']
            self._advantage.update(real - fake)
            rules += self._box_rules(real, fake)
            # Where the mask discriminator has scores, its loss is no distance.
            if 'mask_score_real' not in terms:
                self._distance.update(-terms['mask_discriminator_loss'])
                rules.append(self._mask_rule())
        return [Notice(name, text()) for name, holds, text in rules if self._begins(name, holds)]

    def _box_rules(self, real: float, fake: float) -> list[_Rule]:
        """By the box discriminator's mean scores of this report, and the smoothed values."""
        return [
            (
                'box_discriminator_wins',
                real > WON[0] and fake < WON[1],
                lambda: (
                    f'the box discriminator wins: it gives ground-truth boxes {real:.3f} and '
                    f'predicted ones {fake:.3f}, and a generator that always loses learns little '
                    'from it; lower task.gan.learning_rate_ratio'
                ),
            ),
            (
                'box_discriminator_collapsed',
                self._reports > LEARNING_REPORTS and abs(self._advantage.value) < COLLAPSED,
                lambda: (
                    'the box discriminator does not tell boxes apart (any more): it gives '
                    f'ground-truth ones {real:.3f} and predicted ones {fake:.3f}, so that its '
                    'gradient says nothing; raise task.gan.learning_rate_ratio'
                ),
            ),
        ]

    def _mask_rule(self) -> _Rule:
        """By the smoothed distance of Eq. 6."""
        return (
            'mask_discriminator_collapsed',
            self._distance.value < VANISHED * self._distance.highest,
            lambda: (
                'the mask discriminator has collapsed: the distance it sees between '
                'ground-truth and predicted masks fell from '
                f'{self._distance.highest:.3g} to {self._distance.value:.3g}; raise '
                'task.gan.learning_rate_ratio'
            ),
        )

    def _begins(self, name: str, holds: bool) -> bool:
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if holds else 0
        return self._in_a_row[name] == PATIENCE

    def _mask_loss_runs_away(self) -> bool:
        worse_than_guessing = self._mask_loss.value > math.log(2)
        return worse_than_guessing and self._mask_loss.value > RUN_AWAY * self._mask_loss.lowest

    def _about_mask(self) -> str:
        return (
            f'the mask loss runs away: it was down to {self._mask_loss.lowest:.3f} and is '
            f'{self._mask_loss.value:.3f}, worse than guessing ({math.log(2):.3f}); lower the '
            'learning rate or task.gan.mask_weight'
        )


class _Smoothed:
    """An exponential mean, and its extremes so far."""

    def __init__(self):
        self.value = math.nan
        self.highest = -math.inf
        self.lowest = math.inf

    def update(self, new: float) -> None:
        self.value = new if math.isnan(self.value) else self.value + _NEW * (new - self.value)
        self.highest = max(self.highest, self.value)
        self.lowest = min(self.lowest, self.value)
