"""Programs that tests fork are what the interpreter makes of the same words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import programs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")

TELLS = """
import atexit, os, sys, threading
ours = [name for name in sys.modules if name.partition(".")[0] == "varangian"]
main = sys.modules["__main__"]
print(sys.argv, __name__, globals().get("__file__"), main.__dict__ is globals(), os.getcwd(), ours)
print([os.path.normpath(os.path.abspath(place)) for place in sys.path], sys.stdout.encoding, sys.stdout.isatty())
print(sorted((k, v) for k, v in os.environ.items() if k not in ("_", "LC_CTYPE")))
atexit.register(print, "at the end")
threading.Timer(0.2, lambda: print("after the main thread")).start()
print("complained", file=sys.stderr)
if "stdin" in sys.argv:
    print(sys.stdin.read())
if "fails" in sys.argv:
    raise KeyError("mine")
sys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else None)
"""


@pytest.fixture(autouse=True, scope="module")
def begun_here() -> None:
    """What tests of other files left in the environment is what these programs are forked with, too."""
    programs.server.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("-c", TELLS, "a b", "7"),
        ("-", "0"),
        ("-m", "tells", "ä", "0"),
        ("tells.py", "stdin", "x"),
        ("in/tells.py", "fails"),
    ],
    ids=lambda words: words[0] if words[0] != "-c" else "-c TELLS",
)
def test_a_forked_program_is_that_program(words: tuple[str, ...], tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "in"):
        place.mkdir(exist_ok=True)
        (place / "tells.py").write_text(TELLS, "utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'in'}{os.pathsep}elsewhere", "COLUMNS": "33"}
    given = {"cwd": tmp_path, "env": environment, "input": TELLS if words[0] == "-" else "one\ntwo"}
    forked = programs.run(*words, **given)
    real = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **given)
    assert forked.stdout == real.stdout
    assert forked.stderr == real.stderr
    assert forked.returncode == real.returncode
    assert "after the main thread\nat the end\n" in real.stdout


def test_what_is_imported_already_is_none_of_ours() -> None:
    done = programs.run("-c", "import sys, torch; print('varangian' in sys.modules, 'torch._dynamo' in sys.modules)")
    assert done.stdout == "False True\n", done.stderr


def test_what_an_interpreter_reads_as_it_starts_makes_it_start() -> None:
    code = "import sys; print('torch._dynamo' in sys.modules, sys.flags.optimize)"
    assert programs.run("-c", code, env=os.environ | {"PYTHONOPTIMIZE": "2"}).stdout == "False 2\n"
    assert programs.run("-O", "-c", code).stdout == "False 1\n"


def test_a_program_that_a_signal_ends_and_one_that_does_not_end() -> None:
    assert programs.run("-c", "import os; os.kill(os.getpid(), 9)").returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run("-c", "import time; time.sleep(100)", timeout=0.5)
    assert programs.run("-c", "print(1)").stdout == "1\n"  # and the next one


def test_what_imports_write_into_the_environment_hinders_nobody() -> None:
    programs.server()
    written = {"TORCHINDUCTOR_CACHE_DIR": "somewhere", "KMP_DUPLICATE_LIB_OK": "True"}
    code = "import sys; print('torch._dynamo' in sys.modules)"
    assert programs.run("-c", code, env=os.environ | written).stdout == "True\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_programs_at_work_are_sent_signals_as_any_are(number: int, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; print(os.getpgid(0) == os.getpid(), flush=True); open(sys.argv[1], 'w'); time.sleep(100)"
    )
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    real = subprocess.Popen(
        [sys.executable, "-c", code, "real"], cwd=tmp_path, text=True, start_new_session=True, **pipe
    )
    ended = []
    for name, process in (("real", real), ("forked", programs.start("-c", code, "forked", cwd=tmp_path))):
        while not (tmp_path / name).exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert process.poll() is None
        assert programs.run("-c", "print(1)").stdout == "1\n"  # meanwhile
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        os.killpg(process.pid, number)
        ended.append((*process.communicate(timeout=60), process.returncode, process.poll()))
    assert ended[0] == ended[1]
    assert ended[0][0] == "True\n"


WORKERS = """
import multiprocessing, os, signal, sys

def tell(pipe, number):
    ours = [name for name in sys.modules if name.partition(".")[0] == "varangian"]
    parent = multiprocessing.parent_process()
    told = sorted(i for i in os.environ.items() if not i[0].startswith("COVERAGE_"))  # which each process has anew
    pipe.send((__name__, sys.argv, told, ours, os.getpgid(0) == os.getpgid(parent.pid)))
    pipe.send("torch._dynamo" in sys.modules)
    os.kill(os.getpid(), number)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for number in (signal.SIGKILL, signal.SIGTERM):
        os.environ["NUMBER"] = str(number)
        here, there = context.Pipe()
        process = context.Process(target=tell, args=(there, number))
        process.start()
        print(here.recv())
        print("torch", here.recv())
        process.join()
        print(process.exitcode)
    open("done", "w")
    if "waits" in sys.argv:
        signal.pause()
"""


def test_workers_of_a_forked_program_are_those_of_any(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WORKERS)
    begun_anew, forked = (programs.run("program.py", "x", cwd=tmp_path, workers=workers) for workers in (False, True))
    assert (forked.returncode, forked.stderr) == (0, "")
    assert "-9\n" in forked.stdout
    assert "-15\n" in forked.stdout
    assert forked.stdout.count("torch True\n") == 2
    assert forked.stdout.replace("torch True", "torch False") == begun_anew.stdout


def test_nothing_of_a_forked_program_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WORKERS)
    process = programs.start("program.py", "waits", cwd=tmp_path, workers=True)
    while not (tmp_path / "done").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    limit = time.monotonic() + 60
    while there_is(process.pid):
        assert time.monotonic() < limit
        time.sleep(0.01)


def there_is(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
import varangian
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_what_one_program_may_not_write_the_next_one_has(tmp_path: Path) -> None:
    """Under a limit, the interpreter leaves the beginning of what it compiled, which the next one takes for whole."""
    environment = os.environ | {"PYTHONPATH": str(programs.SOURCES)}
    assert programs.run("-c", LIMITED, cwd=tmp_path, env=environment).returncode == 0
    after = programs.run("-c", "import varangian", cwd=tmp_path, env=environment)
    assert (after.returncode, after.stderr) == (0, "")
