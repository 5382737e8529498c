"""`python -m sae.cli` is the command `sae`."""

import sys

from sae.cli.main import main

sys.exit(main())
