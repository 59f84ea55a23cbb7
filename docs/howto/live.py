"""Makes docs/howto/live.svg: what `varangian watch study` shows while a sweep is under way.

python docs/howto/live.py
"""

from __future__ import annotations

import io
import re
import tempfile
import time
from pathlib import Path
from threading import Thread

from rich.console import Console

from varangian import Grid, Watcher, sweep
from varangian.study.watching.display import shown

WIDTH = 90
GRID = {
    "rule": ["median", "multi-krum", "average"],
    "attack": ["little", "nan"],
    "workers": 11,
    "byzantine": 2,
    "steps": 600,
    "evaluate_every": 10,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        watcher = Watcher(out)
        thread = Thread(target=lambda: sweep(Grid(GRID, seeds="1-2"), out, jobs=2))
        thread.start()
        while True:
            view = watcher.look()
            steps = [run.step for run in view.runs if run.state == "running"]
            if len(view.runs) >= 6 and len(steps) == 2 and min(steps) > 50 and view.left:
                break
            if not thread.is_alive():
                raise SystemExit("the sweep was over before there was something to see: more steps.")
            time.sleep(0.5)
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        console.print(shown(view, WIDTH, 12))
        text = console.export_svg(title="varangian watch study")
        text = re.sub(r"@font-face \{.*?\}", "", text, flags=re.DOTALL)  # which it would load from elsewhere
        Path(__file__).with_suffix(".svg").write_text(text, "utf-8")
        thread.join()


if __name__ == "__main__":
    main()
