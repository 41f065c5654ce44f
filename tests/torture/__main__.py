"""`make torture`: every long command ended many times by kill -9 and SIGTERM.

python -m tests.torture [--times 20] [NAME ...]
"""

import argparse
import tempfile
from pathlib import Path

from tests.rehearsal.server import Server
from tests.torture.commands import COMMANDS, prepare, torture


def main() -> None:
    """Run it; stops at the first thing that is lost, left or made otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COMMANDS)}; all by default")
    parser.add_argument("--times", type=int, default=20, help="how often each command is ended by each signal")
    arguments = parser.parse_args()
    server = Server()
    try:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            made = prepare(Path(folder).resolve() / "made", server)
            for name in arguments.names or COMMANDS:
                print(torture(name, made, made.parent, arguments.times), flush=True)
    finally:
        server.close()


if __name__ == "__main__":
    main()
