"""From videos to a manifest: `python data_pipeline/run.py CONFIG --out DIR`, and commands over its output."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: its own folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    try:  # imported here, or every worker process would import it too, and torch with it
        from data_pipeline.commands import main
    except ModuleNotFoundError as error:
        sys.stderr.write(f'run.py: {error.name} is not installed. Run: pip install -e ".[pipeline]"\n')
        sys.exit(2)

    sys.exit(main())
