"""`python -m khmer_assets` is the console command `khmer`."""

import sys

from khmer_assets.commands import main

sys.exit(main())
