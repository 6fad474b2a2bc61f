"""From videos to a manifest: `python data_pipeline/run.py CONFIG --out DIR`, and commands over its output."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    # Imported here, or every worker process would import it too, and torch with it.
    from data_pipeline.commands import main

    sys.exit(main())
