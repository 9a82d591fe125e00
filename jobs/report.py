"""`ray job submit --working-dir . -- python jobs/report.py [STUDY]`: `tuner report` as a job."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the uploaded working directory

from tuner.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
