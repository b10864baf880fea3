"""Progress in a log file is lines, not a bar that is drawn over itself."""

import io

from gan_mrcnn.utils import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_are_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress_bar, 'LINE_SECONDS', 0.0)
    with progress_bar.Bar(total=3, desc='convert', unit='image') as bar:
        for _ in range(3):
            bar.update(1)
    said = capsys.readouterr().err
    assert '\r' not in said
    lines = said.splitlines()
    assert len(lines) >= 3 and len(set(lines)) == len(lines)
    assert all(line.startswith('convert: ') for line in lines)
    assert '3/3' in lines[-1] and 'image/s' in lines[-1]


def test_quick_work_is_two_lines_at_most(capsys):
    for _ in progress_bar.Bar(range(1000), desc='check'):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2 and '1000/1000' in lines[-1]


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    for _ in progress_bar.Bar(range(3), desc='check'):
        pass
    assert '\r' in terminal.getvalue() and '100%' in terminal.getvalue()
