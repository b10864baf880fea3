"""The ways in which a GAN goes wrong are said in words, once, and a healthy run is left alone."""

import math

import numpy as np
import pytest

from gan_mrcnn.training import gan_monitor

# Every 30 steps of a run on the real glands that went well: scores of the box discriminator, the
# mask discriminator's loss and the mask loss.
HEALTHY = [
    (0.459, 0.455, -0.862, 0.691),
    (0.500, 0.510, -0.607, 0.668),
    (0.498, 0.460, -0.431, 0.644),
    (0.473, 0.400, -0.390, 0.654),
    (0.626, 0.461, -0.282, 0.573),
    (0.558, 0.429, -0.252, 0.438),
    (0.709, 0.554, -0.187, 0.368),
    (0.590, 0.434, -0.170, 0.341),
    (0.477, 0.338, -0.196, 0.452),
    (0.551, 0.390, -0.184, 0.362),
]


def report(real, fake, mask_discriminator_loss, mask_loss):
    return {
        'box_score_real': real,
        'box_score_fake': fake,
        'mask_discriminator_loss': mask_discriminator_loss,
        'mask_loss': mask_loss,
    }


def warnings_of(reports):
    """Names of the notices with the number of the report that they came with."""
    monitor = gan_monitor.GanMonitor()
    return [(notice.name, i) for i, terms in enumerate(reports) for notice in monitor.update(terms)]


def healthy(number):
    rows = np.array(HEALTHY)
    places = np.linspace(0, len(rows) - 1, number)
    columns = [np.interp(places, np.arange(len(rows)), column) for column in rows.T]
    return [report(*row) for row in np.stack(columns, axis=1)]


def test_frozen_discriminators_may_tell_nothing_apart():
    monitor = gan_monitor.GanMonitor(discriminators_learn=False)
    assert not any(monitor.update(report(0.5, 0.5, -0.1, 0.5)) for _ in range(300))
    assert ('box_discriminator_collapsed', 219) in warnings_of([report(0.5, 0.5, -0.1, 0.5)] * 300)


def test_the_loss_of_a_mask_discriminator_that_judges_pixels_is_no_distance():
    terms = {**report(0.6, 0.4, 1.3, 0.5), 'mask_score_real': 0.6, 'mask_score_fake': 0.4}
    assert warnings_of([terms] * 300) == []


def test_a_run_that_went_well_is_left_alone():
    assert warnings_of(healthy(60)) == []
    assert warnings_of(healthy(300)) == []
    assert warnings_of([{'mask_loss': 0.69 - 0.001 * i} for i in range(300)]) == []


@pytest.mark.parametrize(
    'name, gone_wrong',
    [
        ('box_discriminator_wins', report(0.995, 0.004, -0.2, 0.4)),
        ('box_discriminator_collapsed', report(0.501, 0.500, -0.2, 0.4)),
        ('mask_discriminator_collapsed', report(0.6, 0.4, -0.0001, 0.4)),
        ('mask_loss_running_away', report(0.6, 0.4, -0.2, 2.5)),
    ],
)
def test_each_way_of_going_wrong_is_named_once_and_again_after_it_was_mended(name, gone_wrong):
    good, bad = healthy(250), [gone_wrong] * 200
    (first,) = warnings_of(good + bad)
    assert first[0] == name
    assert len(good) + gan_monitor.PATIENCE <= first[1] + 1 < len(good + bad)
    again = warnings_of(good + bad + [report(0.6, 0.4, -0.4, 0.3)] * 200 + bad)
    assert [found for found, _ in again] == [name, name]


def test_one_odd_report_is_no_way_of_going_wrong():
    reports = healthy(200)
    for i in range(100, 200, 25):
        reports[i] = report(1.0, 0.0, 0.0, 30.0)
    assert 'box_discriminator_wins' not in {name for name, _ in warnings_of(reports)}
    reports[150] = dict.fromkeys(reports[0], math.nan)
    warnings_of(reports)


def test_what_is_said_names_the_setting_and_the_numbers():
    monitor = gan_monitor.GanMonitor()
    said = [
        notice.text
        for _ in range(gan_monitor.PATIENCE)
        for notice in monitor.update(report(0.995, 0.004, -0.2, 0.4))
    ]
    (text,) = said
    assert '0.995' in text and '0.004' in text and 'task.gan.learning_rate_ratio' in text
    assert '\n' not in text
