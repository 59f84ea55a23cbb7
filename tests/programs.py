"""Programs as a user starts them, who would wait for torch: here they are forked from a process that has imported it.

What is forked has imported nothing of ours. It gets the words, folder, environment, paths and files of its own that a
new interpreter would, and ends as one does. A program whose environment says anything else to the interpreter, or to
what is imported already, is started as it is anywhere.
"""

from __future__ import annotations

import atexit
import compileall
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from functools import cache
from importlib.machinery import SourceFileLoader
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

# What an interpreter and what is imported read as they start, and do not write into the environment themselves.
READ = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "MPL", "CUDA_", "TRITON_INTERPRET", "HOME", "XDG_")
SOURCES = Path(__file__).parents[1] / "src"


def run(
    *words: object,
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
    input: str = "",
    timeout: float = 600,
    workers: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Of ``python words``: status, and what it wrote. With ``workers``, those of its sweeps are forked too."""
    command = [str(word) for word in words]
    environment = dict(os.environ if env is None else env)
    folder = os.fspath(Path.cwd() if cwd is None else cwd)
    served = server() if hasattr(os, "fork") else None
    options = command[0].startswith("-") and command[0] not in ("-c", "-m")
    if served is None or options or _read(environment) != served.read:
        line = [sys.executable, *command]
        return subprocess.run(
            line, cwd=folder, env=environment, input=input, capture_output=True, text=True, timeout=timeout, check=False
        )
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input.encode())
        given.seek(0)
        files = [file.fileno() for file in (given, out, err)]
        status = served.ask(Question(command, folder, environment, workers), files, timeout)
        for file in (out, err):
            file.seek(0)
        written, complained = (file.read().decode().replace("\r\n", "\n") for file in (out, err))
    return subprocess.CompletedProcess([sys.executable, *command], status, written, complained)


def start(
    *words: object, cwd: Path | str | None = None, env: dict[str, str] | None = None, workers: bool = False
) -> Started | subprocess.Popen[str]:
    """The program ``python words`` at work, in a session of its own: who may be sent signals, and is waited for."""
    command = [str(word) for word in words]
    environment = dict(os.environ if env is None else env)
    folder = os.fspath(Path.cwd() if cwd is None else cwd)
    served = server() if hasattr(os, "fork") else None
    if served is None or _read(environment) != served.read:
        line, pipe = [sys.executable, *command], subprocess.PIPE
        return subprocess.Popen(
            line, cwd=folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        )  # fmt: skip
    return Started(served, Question(command, folder, environment, workers))


class Question(NamedTuple):
    """What is to be run."""

    command: list[str]
    folder: str
    environment: dict[str, str]
    workers: bool


class Started:
    """As of ``subprocess.Popen``, what tests ask of it."""

    def __init__(self, served: Server, question: Question) -> None:
        self.returncode: int | None = None
        self._written = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._place, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as nothing:
            files = [file.fileno() for file in (nothing, *self._written)]
            served.send(question, [*files, theirs.fileno()])
        self.pid = int.from_bytes(_exactly(self._place, 8), "little")

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._place.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(_exactly(self._place, 8), "little", signed=True)
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0) from None
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._place], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        found = []
        for file in self._written:
            file.seek(0)
            found.append(file.read().decode())
            file.close()
        self._place.close()
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _read(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(READ) and k != "PYTHONPATH"}


class Server:
    """The process that has imported what is not ours, and where to ask it."""

    def __init__(self) -> None:
        self.read = _read(dict(os.environ))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.here, there = socket.socketpair()
        with there:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(there.fileno())],
                env=environment, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self.end, os.getpid())

    def end(self, owner: int) -> None:
        if os.getpid() == owner:  # and not a process that a test forked
            self.here.close()
            self.process.wait()

    def send(self, question: Question, files: list[int]) -> None:
        text = json.dumps(question).encode("utf-8", "surrogateescape")
        socket.send_fds(self.here, [len(text).to_bytes(8, "little")], files)
        self.here.sendall(text)

    def ask(self, question: Question, files: list[int], limit: float) -> int:
        self.here.settimeout(limit)
        self.send(question, files)
        process = int.from_bytes(_exactly(self.here, 8), "little")
        try:
            return int.from_bytes(_exactly(self.here, 8), "little", signed=True)
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            self.here.settimeout(60)
            _exactly(self.here, 8)
            raise subprocess.TimeoutExpired([sys.executable, *question.command], limit) from None


@cache
def server() -> Server:
    return Server()


def _exactly(place: socket.socket, n: int) -> bytes:
    found = b""
    while len(found) < n:
        piece = place.recv(n - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


# ----------------------------------------------------------------------------------------- in the process that is asked


def serve(place: socket.socket) -> None:
    """Ends where nobody can ask any more; returns in each process that is forked, to be the program."""
    base = sys.path[1:]
    importlib.import_module("warmed")
    compiled = None
    if sys.dont_write_bytecode:  # beside the sources
        compiled = sys.pycache_prefix = tempfile.mkdtemp()
    compileall.compile_dir(SOURCES, quiet=2)
    sys.dont_write_bytecode = True  # a program that may write no more than some bytes would spoil it for all after it
    watching: list[int] = []
    while True:
        first, files, _, _ = socket.recv_fds(place, 8, 4)
        if not first:
            if compiled is not None:
                shutil.rmtree(compiled)
            sys.exit()
        question = Question(*json.loads(_exactly(place, int.from_bytes(first, "little"))))
        watching = [process for process in watching if not os.waitpid(process, os.WNOHANG)[0]]
        asker, apart = place, len(files) == 4
        process = os.fork()
        if apart and not process:  # who waits for it, while others are asked for
            place.close()
            asker = socket.socket(fileno=files.pop())
            process = os.fork()
        elif apart:
            watching.append(process)
            for file in files:
                os.close(file)
            continue
        if not process:
            asker.close()
            if apart:
                os.setsid()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            os.chdir(question.folder)
            os.environ.clear()
            os.environ.update(question.environment)
            if question.workers:
                fork_workers()
            become(question.command, base)
        for file in files:
            os.close(file)
        asker.sendall(process.to_bytes(8, "little"))
        asker.sendall(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]).to_bytes(8, "little", signed=True))
        if apart:
            os._exit(0)


def fork_workers() -> None:
    """Workers of this program's sweeps are forked from a process that is what this one is now."""
    import ranks  # a name that programs may have files of, so that the others are without it

    resource_tracker.ensure_running()  # which is an interpreter of its own, as ever
    with patch.object(forkserver.util, "spawnv_passfds", _forked):
        forks = ranks.Forks()
    given = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: forks if method == "spawn" else given(method)  # type: ignore


def _forked(_: object, words: list[str], files: list[int]) -> int:
    """A new process at ``python -c words[-1]``, which holds of the files of this one what the interpreter would."""
    process = os.fork()
    if not process:
        kept = sorted({0, 1, 2, *files})
        for below, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(below + 1, above)
        try:
            exec(words[-1], {})
        finally:
            os._exit(0)
    return process


def become(command: list[str], base: list[str]) -> None:
    """What the interpreter makes of its words: ``-m module``, ``-c code``, or a file."""
    given = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    kind, *words = command
    code: types.CodeType | None = None
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if kind == "-m":
        first, sys.argv = os.getcwd(), words
    elif kind in ("-c", "-"):
        first, sys.argv = "", [kind, *words[kind == "-c" :]]
        code = compile(
            words[0] if kind == "-c" else sys.stdin.read(), "<string>" if kind == "-c" else "<stdin>", "exec"
        )
    else:
        path = os.path.abspath(kind)
        first, sys.argv = os.path.dirname(path), command
        main.__file__, main.__loader__ = path, SourceFileLoader("__main__", path)
        code = compile(Path(path).read_bytes(), path, "exec")
    sys.path[:] = [first, *given, *base]
    sys.path_importer_cache.clear()
    try:
        if code is None:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main
            exec(code, main.__dict__)
    except (Exception, KeyboardInterrupt) as error:
        outer = error.__traceback__  # this function's
        sys.excepthook(type(error), error.with_traceback(outer and outer.tb_next), outer)
        if isinstance(error, KeyboardInterrupt):  # it ends by the signal, and all is said
            sys.excepthook = lambda *_: None
            raise
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
