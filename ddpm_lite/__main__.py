"""``python -m ddpm_lite``: the command line."""

import sys

from ddpm_lite.cli import main

sys.exit(main())
