"""What perf has recorded, as the text that is parsed; made where it was recorded."""

import inspect

from aiopt.protocols import Command

from . import _perf_maps

__all__ = ["printed"]

# Without Python the call stacks of some programs are short; that is no reason to have none.
_SCRIPT = """
out=$0; perf=$1; python=$2; maps=$3; shift 3
if [ "$maps" ] && command -v "$python" >/dev/null
then "$python" -I -S -c "$maps" "$out.data"
fi
exec "$perf" script -i "$out.data" --no-inline --show-lost-events "$@" >"$out"
"""


def printed(
    output: str, perf: str, python: str, call_graph: str, *options: str, label: str
) -> Command:
    """Prints `output`.data to `output`, with these options of `perf script`."""
    maps = inspect.getsource(_perf_maps) if call_graph.startswith("dwarf") else ""
    argv = ("sh", "-c", _SCRIPT, output, perf, python, maps, *options)
    return Command(argv=argv, timeout=600.0, label=label)
