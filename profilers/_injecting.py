"""Code of ours at the start of a Python program, whatever starts that: a shell script, a pool.

The interpreter imports `sitecustomize` before anything else. A folder with ours is put at the front
of PYTHONPATH; a `sitecustomize` that was there before is run first. It does not work for
interpreters that ignore the environment (`-I`, `-E`, `-S`).
"""

import sysconfig

from attrs import evolve

from aiopt.protocols import Command

__all__ = ["OWN_SITE", "injected"]

OWN_SITE = sysconfig.get_path("purelib")
"""Where the packages of aiopt's own environment are."""

_SCRIPT = """
out=$0; code=$1; shift
mkdir -p "$out.site" && printf %s "$code" >"$out.site/sitecustomize.py" || exit 1
PYTHONPATH="$out.site${PYTHONPATH:+:$PYTHONPATH}" exec "$@"
"""
_BEFORE = """\
def _aiopt_run_the_one_before():
    import importlib.machinery, importlib.util, os, sys
    here = os.path.dirname(__file__)
    paths = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

def _aiopt_at_end(function):
    import atexit, os, signal
    atexit.register(function)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def end(number, frame):
        atexit.unregister(function)
        function()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)  # until the program sets its own, and exits in order then

_aiopt_run_the_one_before()
_OUT = __file__[: -len(".site/sitecustomize.py")]
"""


def injected(command: Command, code: str, output: str) -> Command:
    """The command with `code` run at the start of each Python program that it starts.

    The code finds `output` in the variable `_OUT`, and `_aiopt_at_end(function)` calls a function
    when the program ends, also by TERM.
    """
    return evolve(command, argv=("sh", "-c", _SCRIPT, output, _BEFORE + code, *command.argv))
