"""Films a running sweep: docs/live.svg is what this saw of a real one.

    python -m orchestrator sweep=lr_grid tracking=off &
    python docs/record.py outputs/lr_grid docs/live.svg

It looks into the run folder every second, as `status` does, and draws as the live table does.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.text import Text

from orchestrator.terminal.live_table import Display
from orchestrator.terminal.progress import (
    planned_configs,
    planned_trials,
    read_progress,
    time_left_s,
)
from orchestrator.terminal.status import lock_holder
from orchestrator.terminal.summary import closing, ranking, title
from sweeps.ledger.history import History, read_history
from sweeps.results.ranking import best
from sweeps.results.significance import compare
from sweeps.results.trials_csv import ranked
from sweeps.storage.run_folder import RunFolder

WIDTH, LINES = 120, 20  # characters
LOOK_S = 1.0
MOST_FRAMES = 12  # of the film, besides the last one
FRAME_S = 1.0
LAST_FRAMES = 5  # how many times longer the last one stays

_LAYER = """<style>{styles}
.{unique_id}-matrix {{ {{timing}} }}</style>
<g class="{unique_id}-matrix">{backgrounds}{matrix}</g>"""
# Rich's own template fetches a font from the network; a picture should not.
_PICTURE = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>text {{ font: {char_height}px ui-monospace, Menlo, Consolas, monospace; }}
@media (prefers-reduced-motion) {{ g {{ animation: none !important; }} }}</style>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{{frames}}
</g>
</svg>
"""


def main(run_dir: Path, picture: Path) -> None:
    console = Console(
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=WIDTH,
        height=LINES,
        highlight=False,
    )
    folder = RunFolder(run_dir)
    views = list(_watch(folder, console))
    chosen = [views[i * len(views) // MOST_FRAMES] for i in range(min(MOST_FRAMES, len(views)))]
    picture.write_text(film(console, [*chosen, _end(folder)]), encoding="utf-8")


def _watch(folder: RunFolder, console: Console) -> Iterator[RenderableType]:
    """The live table once a look, from the first event until the driver is gone."""
    display: Display | None = None
    while display is None or lock_holder(folder.lock) is not None:
        time.sleep(LOOK_S)
        history = read_history(folder.ledger) if folder.ledger.exists() else History()
        if not history.trials:
            continue
        display = display or Display(folder, history.spec, console=console)
        progress = read_progress(folder, history)
        total = planned_trials(history, planned_configs(history.spec))
        yield display.view(history, progress, time_left_s(history, progress, total, time.time()))


def _end(folder: RunFolder) -> RenderableType:
    """The ranked table and the last lines."""
    history = read_history(folder.ledger)
    table = ranking(history, folder, ranked(history, compare(history, folder)))
    return Group(title(history), Text(), *table, *closing(history, folder, best(history)))


def film(console: Console, views: list[RenderableType]) -> str:
    """One SVG whose layers are shown in turn; without animation it stands still on the last."""
    slots = len(views) - 1 + LAST_FRAMES
    layers = []
    for number, view in enumerate(views):
        is_last = number == len(views) - 1
        name = f"f{number}"
        console.print(Align(view, vertical="top", height=LINES))
        layer = console.export_svg(code_format=_LAYER, unique_id=name)
        begin, end = 100 * number / slots, 100 if is_last else 100 * (number + 1) / slots
        timing = (
            f"visibility: {'visible' if is_last else 'hidden'}; "
            f"animation: {name} {slots * FRAME_S:g}s step-end infinite; }}\n"
            f"@keyframes {name} {{ 0% {{ visibility: hidden }} {begin:.2f}% "
            f"{{ visibility: visible }} {end:.2f}% {{ visibility: hidden }}"
        )
        layers.append(layer.replace("{timing}", timing))
    console.print(Align(Text(), vertical="top", height=LINES))
    command = "python -m orchestrator sweep=lr_grid"
    empty = console.export_svg(title=command, code_format=_PICTURE, unique_id="window")
    whole = empty.replace("{frames}", "\n".join(layers))
    return re.sub(r' clip-path="[^"]*"', "", whole)  # of single lines, which fit anyway


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
